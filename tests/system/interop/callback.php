<?php
// The application that is called back, by PHP's SoapServer; appends a line for each call to the file in HEARD.
ini_set('soap.wsdl_cache_enabled', '0');

class TerminalStatusNotification
{
    private function heard(string $what, $value): void
    {
        file_put_contents(getenv('HEARD'), json_encode([$what, $value], JSON_UNESCAPED_SLASHES) . "\n", FILE_APPEND);
    }

    private function listed($value): array
    {
        return $value === null ? [] : (is_array($value) ? $value : [$value]);
    }

    public function statusNotification($call)
    {
        $changes = array_map(fn ($one) => [$one->address, $one->currentStatus], $this->listed($call->terminalStatus));
        $this->heard('statusNotification', [$call->correlator, $changes]);
        return new stdClass();
    }

    public function statusError($call)
    {
        $reason = $call->reason;
        $variables = $this->listed($reason->variables ?? null);
        $address = $call->address ?? null;
        $this->heard('statusError', [$call->correlator, $address, $reason->messageId, $reason->text, $variables]);
        return new stdClass();
    }

    public function statusEnd($call)
    {
        $this->heard('statusEnd', $call->correlator);
        return new stdClass();
    }
}

$server = new SoapServer(getenv('WSDL'), ['cache_wsdl' => WSDL_CACHE_NONE]);
$server->setClass('TerminalStatusNotification');
$server->handle();
