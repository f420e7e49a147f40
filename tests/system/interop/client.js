// The npm package `soap` as a Parlay X client and as the application that is called back.
// Arguments and output: see test_interop.py; the package is found by NODE_PATH.
'use strict';
const http = require('node:http');
const soap = require('soap');

const [base, user, secret, name] = process.argv.slice(2);
const WAIT_MS = 20000;
const say = (what, value) => console.log(JSON.stringify([what, value === undefined ? null : value]));
const listed = (value) => (value === undefined || value === null ? [] : [].concat(value));

const calls = [];
const waiting = [];
const heard = (what, value) => {
  const taker = waiting.shift();
  if (taker) taker([what, value]);
  else calls.push([what, value]);
};
const nextCall = () =>
  new Promise((resolve, reject) => {
    if (calls.length) return resolve(calls.shift());
    const timer = setTimeout(() => reject(new Error('no callback came')), WAIT_MS);
    waiting.push((call) => {
      clearTimeout(timer);
      resolve(call);
    });
  }).then((call) => say(...call));

const application = {
  TerminalStatusNotificationService: {
    TerminalStatusNotification: {
      statusNotification: (call) => {
        const changes = listed(call.terminalStatus).map((one) => [one.address, one.currentStatus]);
        heard('statusNotification', [call.correlator, changes]);
        return {};
      },
      statusError: (call) => {
        const { messageId, text, variables } = call.reason;
        heard('statusError', [call.correlator, call.address ?? null, messageId, text, listed(variables)]);
        return {};
      },
      statusEnd: (call) => {
        heard('statusEnd', call.correlator);
        return {};
      },
    },
  },
};

const faultOf = async (what, call) => {
  try {
    await call();
  } catch (error) {
    const [[element, found]] = Object.entries(error.root.Envelope.Body.Fault.detail);
    say(what, [element, found.messageId, found.text, listed(found.variables)]);
  }
};

const main = async () => {
  const wsdl = `${base}/TerminalStatusNotification?wsdl`;
  const server = http.createServer((request, response) => response.writeHead(404).end());
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const xml = await (await fetch(wsdl)).text();
  await new Promise((resolve, reject) => {
    const callback = (error) => (error ? reject(error) : resolve());
    soap.listen(server, { path: '/callback', services: application, xml, uri: wsdl, callback });
  });
  const endpoint = `http://127.0.0.1:${server.address().port}/callback`;

  const security = () =>
    new soap.WSSecurity(user, secret, { passwordType: 'PasswordDigest', hasNonce: true, mustUnderstand: true });
  const status = await soap.createClientAsync(`${base}/TerminalStatus?wsdl`);
  const manager = await soap.createClientAsync(`${base}/TerminalStatusNotificationManager?wsdl`);
  status.setSecurity(security());
  manager.setSecurity(security());
  const start = (number, address, checkImmediate, count) =>
    manager.startNotificationAsync({
      reference: { endpoint, interfaceName: 'TerminalStatusNotification', correlator: `${name}-${number}` },
      addresses: [address],
      criteria: ['Reachable', 'Busy'],
      checkImmediate,
      frequency: { metric: 'Second', units: 0 },
      duration: { metric: 'Hour', units: 1 },
      ...(count === undefined ? {} : { count }),
    });

  say('getStatus', (await status.getStatusAsync({ address: 'sip:alice@example.com' }))[0].result);
  const addresses = [
    'sip:alice@example.com', 'sip:bob@example.com', 'sip:answer-403@example.com', 'sip:silent@example.com',
  ];
  const [{ result }] = await status.getStatusForGroupAsync({ addresses });
  say('getStatusForGroup', result.map((one) => [
    one.address,
    one.reportStatus,
    one.currentStatus ?? null,
    one.errorInformation?.messageId ?? null,
    listed(one.errorInformation?.variables),
  ]));
  await faultOf('fault of getStatus', () => status.getStatusAsync({ address: 'sip:answer-403@example.com' }));
  await faultOf('fault of getStatusForGroup', () => status.getStatusForGroupAsync({ addresses: ['alice'] }));
  await start(1, 'sip:alice@example.com', true, 1);
  say('startNotification', null);
  await nextCall();
  await nextCall();
  await start(2, 'sip:terminated-noresource@example.com', true);
  await nextCall();
  await start(3, 'sip:carol@example.com', false);
  await faultOf('fault of startNotification', () => start(3, 'sip:carol@example.com', false));
  await manager.endNotificationAsync({ correlator: `${name}-3` });
  say('endNotification', null);
  await faultOf('fault of endNotification', () => manager.endNotificationAsync({ correlator: `${name}-3` }));
  server.close();
  server.closeAllConnections();
};

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
