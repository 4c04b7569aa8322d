// One scenario of @jupyterlab/services, the library that JupyterLab itself uses, against a server.
//
//     node services.mjs <scenario> <settings.json
//
// The settings are one line on standard input: {"baseUrl", "wsUrl", "token", "legacy", "kernel"},
// the last being the id of a kernel that a scenario may use. What happens goes to standard output,
// one JSON object a line: {"event"} while the scenario waits for something to be done to the
// server, and at the end {"result"}. Whatever the library logs goes to standard error.

import { createHash } from 'node:crypto';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import services from '@jupyterlab/services';
import WebSocket from 'ws';

console.log = console.info = console.debug = console.warn = console.error;

const PRINT = `
import time
for number in range(COUNT):
    print(number, flush=True)
    time.sleep(0.02)
`;

const say = object => process.stdout.write(JSON.stringify(object) + '\n');
const given = JSON.parse(await text(process.stdin));

/** Every WebSocket that the library opened, in order. */
const sockets = [];

class Socket extends WebSocket {
  constructor(url, protocols) {
    // A client of old offers none.
    super(url, given.legacy ? [] : protocols);
    sockets.push(this);
  }
}

let requests = 0;

const serverSettings = services.ServerConnection.makeSettings({
  baseUrl: given.baseUrl,
  wsUrl: given.wsUrl,
  token: given.token,
  WebSocket: Socket,
  fetch: (...what) => {
    requests += 1;
    return fetch(...what);
  }
});
const kernels = new services.KernelManager({ serverSettings });

// --- What the scenarios have in common ---

/** The first true value of `check`. */
async function until(what, check, seconds = 20) {
  for (const end = Date.now() + 1000 * seconds; Date.now() < end; await sleep(5)) {
    const found = await check();
    if (found) {
      return found;
    }
  }
  throw new Error(`not within ${seconds} s: ${what}`);
}

/** A copy of what is in a message's buffer, which may be a view of the whole message. */
const copy = ({ buffer, byteOffset, byteLength }) => buffer.slice(byteOffset, byteOffset + byteLength);

const sha256 = view => createHash('sha256').update(new Uint8Array(copy(view))).digest('hex');

/** Cut the connection as a broken network does, in the middle of things. */
async function cut(kernel) {
  sockets.at(-1).terminate();
  // What is asked for in this moment the library sends, and it is gone.
  await until('a lost connection', () => kernel.connectionStatus !== 'connected');
}

const connected = kernel =>
  until('a new connection', () => kernel.connectionStatus === 'connected');

function connect(id = given.kernel) {
  return kernels.connectTo({ model: { id, name: 'python3' } });
}

/** Call `work` with a kernel of its own, which ends with it. */
async function withKernel(work) {
  const kernel = await kernels.startNew({ name: 'python3' });
  try {
    return await work(kernel);
  } finally {
    await services.KernelAPI.shutdownKernel(kernel.id, serverSettings);
  }
}

/** Start a cell; `ran` fills with what a notebook would show, and more. */
function start(kernel, code, options = {}) {
  const future = kernel.requestExecute({ code, ...options });
  const ran = { future, stdout: '', stderr: '', outputs: [], states: [], replies: [] };
  const id = future.msg.header.msg_id;
  // Also what the library itself would pass over, as a second reply.
  kernel.anyMessage.connect((_, { msg, direction }) => {
    if (direction === 'recv' && msg.header.msg_type === 'execute_reply' && msg.parent_header.msg_id === id) {
      ran.replies.push(msg.content);
    }
  });
  future.onIOPub = ({ header, content }) => {
    if (header.msg_type === 'stream') {
      ran[content.name] += content.text;
    } else if (header.msg_type === 'status') {
      ran.states.push(content.execution_state);
    } else {
      ran.outputs.push({ type: header.msg_type, ...content });
    }
  };
  return ran;
}

async function end(ran) {
  await ran.future.done;
  const { future, ...rest } = ran;
  return rest;
}

const execute = (kernel, code, options) => end(start(kernel, code, options));

/** What a promise was rejected with. */
async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    return { status: error.response?.status, message: error.message };
  }
  return null;
}

// --- Scenarios ---

const scenarios = {
  async specs() {
    const manager = new services.KernelSpecManager({ serverSettings });
    await manager.ready;
    const { default: name, kernelspecs } = manager.specs;
    const { language, display_name, resources } = kernelspecs[name];
    const logo = await services.ServerConnection.makeRequest(
      new URL(resources['logo-64x64'], given.baseUrl).href,
      {},
      serverSettings
    );
    const start = Buffer.from(await logo.arrayBuffer()).subarray(1, 4).toString();
    return { name, language, display_name, logo: [logo.status, start] };
  },

  async kernels() {
    await kernels.ready;
    const other = new services.KernelManager({ serverSettings });
    const kernel = await kernels.startNew({ name: 'python3' });
    const info = await kernel.info;
    await other.refreshRunning();
    const seen = other.connectTo({ model: kernel.model });
    await seen.info;
    const model = await other.findById(kernel.id);
    await kernels.shutdown(kernel.id);
    await other.refreshRunning();
    return {
      info: info.language_info.name,
      model: { ...model, same: model.id === kernel.id },
      disposed: [kernel.isDisposed, seen.isDisposed],
      left: [...other.running()].some(({ id }) => id === kernel.id),
      found: (await other.findById(kernel.id)) ?? null
    };
  },

  async refusals() {
    const stranger = { ...serverSettings, token: 'no such token' };
    const nowhere = '00000000-0000-0000-0000-000000000000';
    return {
      stranger: await refusal(services.KernelAPI.listRunning(stranger)),
      spec: await refusal(services.KernelAPI.startNew({ name: 'nope' }, serverSettings)),
      kernel: (await services.KernelAPI.getKernelModel(nowhere, serverSettings)) ?? null,
      session: await refusal(services.SessionAPI.getSessionModel(nowhere, serverSettings)),
      restart: await refusal(services.KernelAPI.restartKernel(nowhere, serverSettings)),
      shutdown: await refusal(services.KernelAPI.shutdownKernel(nowhere, serverSettings))
    };
  },

  async sessions() {
    const sessions = new services.SessionManager({ serverSettings, kernelManager: kernels });
    await sessions.ready;
    const path = `${crypto.randomUUID()}.ipynb`;
    const options = { path, type: 'notebook', name: 'a.ipynb', kernel: { name: 'python3' } };
    const session = await sessions.startNew(options);
    const first = session.kernel.id;
    const ran = [await execute(session.kernel, "print('first')")];
    const again = await services.SessionAPI.startSession(options, serverSettings);
    await session.setPath(`moved-${path}`);
    await session.setName('b.ipynb');
    await session.setType('console');
    const moved = await services.SessionAPI.getSessionModel(session.id, serverSettings);
    await session.changeKernel({ name: 'python3' });
    ran.push(await execute(session.kernel, "print('second')"));
    await sessions.refreshRunning();
    const found = await sessions.findByPath(`moved-${path}`);
    const second = session.kernel.id;
    await session.shutdown();
    await sessions.refreshRunning();
    const listed = (await services.KernelAPI.listRunning(serverSettings)).map(({ id }) => id);
    return {
      again: [again.id === session.id, again.kernel.id === first],
      moved: [moved.path === `moved-${path}`, moved.name, moved.type, moved.kernel.id === first],
      found: [found.id === session.id, found.kernel.id === second, first !== second],
      stdout: ran.map(({ stdout }) => stdout),
      left: [first, second].filter(id => listed.includes(id)),
      gone: (await sessions.findById(session.id)) ?? null,
      refused: await refusal(services.SessionAPI.getSessionModel(session.id, serverSettings))
    };
  },

  async execute() {
    const kernel = connect();
    const code = `
import sys
from IPython.display import HTML, display
print('out')
print('err', file=sys.stderr)
shown = display(HTML('<b>1</b>'), display_id=True)
shown.update(HTML('<b>2</b>'))
6 * 7`;
    const ran = await execute(kernel, code, { user_expressions: { two: '1 + 1' } });
    const failed = await execute(kernel, "raise ValueError('no ☃')");
    const inspected = await kernel.requestInspect({ code: 'print', cursor_pos: 5, detail_level: 0 });
    // Its other completer takes many seconds to start.
    await execute(kernel, '%config IPCompleter.use_jedi = False');
    const completed = await kernel.requestComplete({ code: 'pri', cursor_pos: 3 });
    const whole = await kernel.requestIsComplete({ code: 'for a in b:' });
    const past = await kernel.requestHistory({ hist_access_type: 'tail', n: 1, output: false, raw: true });
    return {
      protocol: sockets.at(-1).protocol,
      ran,
      failed,
      inspected: inspected.content.found,
      completed: completed.content.matches.includes('print'),
      whole: whole.content.status,
      past: past.content.history.length
    };
  },

  async stdin() {
    const kernel = connect();
    const code = "import getpass\nprint(input('name? ') + getpass.getpass('word? '))";
    const ran = start(kernel, code, { allow_stdin: true });
    const asked = [];
    ran.future.onStdin = async msg => {
      asked.push([msg.content.prompt, msg.content.password]);
      if (asked.length === 1) {
        // The question came before the cut, the answer goes after it.
        // People take longer than the relay needs to know that it came.
        await sleep(500);
        await cut(kernel);
        await connected(kernel);
      }
      kernel.sendInputReply({ status: 'ok', value: `answer ${asked.length};` }, msg.header);
    };
    return { ...(await end(ran)), asked };
  },

  async comms() {
    const kernel = connect();
    await kernel.info;
    const came = [];
    kernel.registerCommTarget('page', (comm, msg) => {
      came.push(['open', msg.content.data, msg.buffers.map(sha256)]);
      comm.onMsg = ({ content, buffers }) => {
        came.push(['msg', content.data, buffers.map(sha256)]);
        comm.send({ back: true }, {}, buffers.map(copy));
      };
      comm.onClose = ({ content }) => came.push(['close', content.data, []]);
    });
    const prepared = await execute(kernel, `
import hashlib, threading
from comm import create_comm
every = bytes(range(256))
back, gate = [], threading.Event()
def opened(comm, message):
    def echo(message):
        gate.set()
        comm.send({'echo': message['content']['data']}, buffers=[bytes(each)[::-1] for each in message['buffers']])
    comm.on_msg(echo)
get_ipython().kernel.comm_manager.register_target('echo', opened)
page = create_comm(target_name='page', data={'number': 1}, buffers=[every, b''])
page.on_msg(lambda message: back.extend(hashlib.sha256(each).hexdigest() for each in message['buffers']))
page.send({'number': 2}, buffers=[every * 4096])`);
    await until('two messages', () => came.length >= 2);
    const page = await until('what came back', async () => {
      const { stdout } = await execute(kernel, 'print(*back)');
      return stdout.trim();
    });
    await execute(kernel, "page.close({'number': 3})");
    await until('its end', () => came.length === 3);
    // And the other way, while the kernel runs a cell: the library uses a subshell for that.
    const waiting = start(kernel, 'print(gate.wait(10))');
    const comm = kernel.createComm('echo');
    const echoed = [];
    comm.onMsg = ({ content, buffers }) => echoed.push([content.data, buffers.map(sha256)]);
    await comm.subshellStarted;
    comm.open();
    comm.send({ a: 1 }, {}, [new Uint8Array(256).map((_, index) => index).buffer]);
    await until('an echo', () => echoed.length);
    return {
      prepared, came, page, echoed, waiting: await end(waiting), subshell: comm.subshellId !== null
    };
  },

  busy: () => withKernel(async kernel => {
    const states = [];
    const ran = start(kernel, "import time\nprint('begins', flush=True)\ntime.sleep(5)\nprint('ends')");
    await until('its line', () => ran.stdout);
    kernel.statusChanged.connect((_, status) => states.push(status));
    const began = Date.now();
    // Like another tab, or a page that was reloaded.
    const late = connect(kernel.id);
    const info = await late.info;
    await until('its state', () => late.status === 'busy');
    const usable = Date.now() - began;
    const queued = start(late, "print('next')");
    await sleep(1000);
    const meanwhile = [late.status, kernel.status, queued.stdout];
    const next = await end(queued);
    const took = Date.now() - began;
    return { info: info.implementation, usable, meanwhile, next, took, ran: await end(ran), states };
  }),

  interrupt: () => withKernel(async kernel => {
    const ran = start(kernel, "import time\nprint('sleeps', flush=True)\ntime.sleep(60)");
    await until('its line', () => ran.stdout);
    await kernel.interrupt();
    return { ran: await end(ran), after: await execute(kernel, 'print(1)') };
  }),

  restart: () => withKernel(async kernel => {
    const states = [];
    kernel.statusChanged.connect((_, status) => states.push(status));
    await execute(kernel, 'kept = 1');
    const abandoned = start(kernel, 'import time; time.sleep(60)');
    abandoned.future.done.catch(() => {});
    await until('a busy kernel', () => abandoned.states.length);
    await kernel.restart();
    const after = await execute(kernel, 'kept');
    return { after, states: [...states], connection: kernel.connectionStatus };
  }),

  death: () => withKernel(async kernel => {
    const states = [];
    kernel.statusChanged.connect((_, status) => states.push(status));
    await execute(kernel, 'kept = 1');
    start(kernel, 'import os; os._exit(1)').future.done.catch(() => {});
    await until('its autorestart', () => states.includes('autorestarting'));
    await connected(kernel);
    const after = await execute(kernel, 'kept');
    // Time for it to hear of the restart again.
    await sleep(300);
    return { after, states: [...states], sockets: sockets.length };
  }),

  async reconnect() {
    const kernel = connect();
    const ran = start(kernel, PRINT.replace('COUNT', 80));
    let next = null;
    for (const line of ['\n19\n', '\n49\n']) {
      await until(`${line.trim()} printed`, () => ran.stdout.includes(line));
      await cut(kernel);
      // Asked for while the connection is away: it waits its turn.
      next ??= start(kernel, "print('next')");
      await connected(kernel);
    }
    return { ran: await end(ran), next: await end(next), sockets: sockets.length };
  },

  async sentAway() {
    const kernel = connect();
    await kernel.info;
    const codes = [];
    sockets.at(-1).addEventListener('close', ({ code, reason }) => codes.push([code, reason]));
    const before = { sockets: sockets.length, requests };
    say({ event: 'connected' });
    await until('its end', () => kernel.status === 'dead');
    // Whoever goes on asking does so by now.
    await sleep(5000);
    return { codes, sockets: sockets.length - before.sockets, requests: requests - before.requests };
  },

  // A page has no library's help, and can set no header: the token is in a subprotocol.
  async subprotocol() {
    const name = 'v1.token.websocket.jupyter.org';
    const offers = {
      both: [name, `${name}.${given.token}`],
      v1: ['v1.kernel.websocket.jupyter.org', `${name}.${given.token}`],
      token: [`${name}.${given.token}`],
      wrong: [name, `${name}.${given.token}x`],
      name: [name]
    };
    const answers = {};
    for (const [offer, protocols] of Object.entries(offers)) {
      const socket = new WebSocket(`${given.wsUrl}/api/kernels/${given.kernel}/channels`, protocols);
      answers[offer] = await new Promise(resolve => {
        socket.on('open', () => resolve(socket.protocol));
        socket.on('unexpected-response', (_, response) => resolve(response.statusCode));
        socket.on('error', error => resolve(error.message));
      });
      socket.terminate();
    }
    return answers;
  },

  async agent() {
    const kernel = connect();
    const connection = [];
    kernel.connectionStatusChanged.connect((_, status) => connection.push(status));
    await kernel.info;
    const ran = start(kernel, PRINT.replace('COUNT', 100));
    await until('ten lines', () => ran.stdout.includes('\n9\n'));
    say({ event: 'printing' });
    return { ran: await end(ran), sockets: sockets.length, connection };
  }
};

setTimeout(() => {
  throw new Error(`no end of ${process.argv[2]} within 45 s`);
}, 45_000);
say({ result: await scenarios[process.argv[2]]() });
process.exit(0);
