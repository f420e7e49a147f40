<?php
// PHP's SoapClient as a Parlay X client; its SoapServer (callback.php) is the application that is called back.
// Arguments and output: see test_interop.py.
[, $base, $user, $secret, $name] = $argv;
ini_set('soap.wsdl_cache_enabled', '0');
const WAIT_S = 20;

function say(string $what, $value): void
{
    echo json_encode([$what, $value], JSON_UNESCAPED_SLASHES), "\n";
}

function listed($value): array
{
    return $value === null ? [] : (is_array($value) ? $value : [$value]);
}

function fault_of(string $what, callable $call): void
{
    try {
        $call();
    } catch (SoapFault $fault) {
        [$element] = array_keys(get_object_vars($fault->detail));
        $found = $fault->detail->$element;
        say($what, [$element, $found->messageId, $found->text, listed($found->variables ?? null)]);
    }
}

// A free port for the application.
$probe = stream_socket_server('tcp://127.0.0.1:0');
$where = stream_socket_get_name($probe, false);
fclose($probe);
$heard = tempnam(sys_get_temp_dir(), 'callbacks');
$server = proc_open(
    [PHP_BINARY, '-S', $where, __DIR__ . '/callback.php'],
    [1 => ['file', '/dev/null', 'w'], 2 => ['file', '/dev/null', 'w']],
    $pipes,
    null,
    ['WSDL' => "$base/TerminalStatusNotification?wsdl", 'HEARD' => $heard] + getenv(),
);
register_shutdown_function(function () use ($server, $heard) {
    proc_terminate($server);
    unlink($heard);
});
for ($until = microtime(true) + WAIT_S; !($connection = @fsockopen("tcp://$where")); usleep(10000)) {
    if (microtime(true) > $until) {
        exit('the application does not start');
    }
}
fclose($connection);

$printed = 0;
function next_call(): void
{
    global $heard, $printed;
    for ($until = microtime(true) + WAIT_S; count($lines = file($heard)) <= $printed; usleep(10000)) {
        if (microtime(true) > $until) {
            exit('no callback came');
        }
    }
    echo $lines[$printed++];
}

$options = ['login' => $user, 'password' => $secret, 'cache_wsdl' => WSDL_CACHE_NONE];
$status = new SoapClient("$base/TerminalStatus?wsdl", $options);
$manager = new SoapClient("$base/TerminalStatusNotificationManager?wsdl", $options);

function start(int $number, string $address, bool $check, ?int $count): void
{
    global $manager, $where, $name;
    $manager->startNotification([
        'reference' => [
            'endpoint' => "http://$where/callback",
            'interfaceName' => 'TerminalStatusNotification',
            'correlator' => "$name-$number",
        ],
        'addresses' => [$address],
        'criteria' => ['Reachable', 'Busy'],
        'checkImmediate' => $check,
        'frequency' => ['metric' => 'Second', 'units' => 0],
        'duration' => ['metric' => 'Hour', 'units' => 1],
    ] + ($count === null ? [] : ['count' => $count]));
}

say('getStatus', $status->getStatus(['address' => 'sip:alice@example.com'])->result);
$results = $status->getStatusForGroup(['addresses' => [
    'sip:alice@example.com', 'sip:bob@example.com', 'sip:answer-403@example.com', 'sip:silent@example.com',
]])->result;
say('getStatusForGroup', array_map(fn ($one) => [
    $one->address,
    $one->reportStatus,
    $one->currentStatus ?? null,
    $one->errorInformation->messageId ?? null,
    listed($one->errorInformation->variables ?? null),
], $results));
fault_of('fault of getStatus', fn () => $status->getStatus(['address' => 'sip:answer-403@example.com']));
fault_of('fault of getStatusForGroup', fn () => $status->getStatusForGroup(['addresses' => ['alice']]));
start(1, 'sip:alice@example.com', true, 1);
say('startNotification', null);
next_call();
next_call();
start(2, 'sip:terminated-noresource@example.com', true, null);
next_call();
start(3, 'sip:carol@example.com', false, null);
fault_of('fault of startNotification', fn () => start(3, 'sip:carol@example.com', false, null));
$manager->endNotification(['correlator' => "$name-3"]);
say('endNotification', null);
fault_of('fault of endNotification', fn () => $manager->endNotification(['correlator' => "$name-3"]));
