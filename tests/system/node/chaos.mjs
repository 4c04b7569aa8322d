// Kernel connections of @jupyterlab/services, the library that JupyterLab itself uses, that are
// told what to ask while the server is killed around them.
//
//     node chaos.mjs
//
// Commands come on standard input, one JSON object a line, the first being the settings:
// {"baseUrl", "wsUrl", "token"}, then {"open": seat, "kernel": id} and {"ask": key, "seat", "code"}.
// What happens goes to standard output, one JSON object a line: {"status": seat, "connection"} and
// {"heard": seat, "messages": [[key, type, text, is stderr, date], …]}. A text of more than
// 100,000 characters goes as its digest. Whatever the library logs goes to standard error.

import { createHash } from 'node:crypto';
import { createInterface } from 'node:readline';
import services from '@jupyterlab/services';
import WebSocket from 'ws';

console.log = console.info = console.debug = console.warn = console.error;

const LARGE = 100_000;

const say = object => process.stdout.write(JSON.stringify(object) + '\n');
const commands = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const given = JSON.parse((await commands.next()).value);

const serverSettings = services.ServerConnection.makeSettings({ ...given, WebSocket });
const kernels = new services.KernelManager({ serverSettings });
const seats = new Map();

const digest = text => 'sha256:' + createHash('sha256').update(text.replace(/\n$/, '')).digest('hex') + '\n';

class Seat {
  constructor(name, id) {
    this.name = name;
    this.keys = new Map();
    this.heard = [];
    this.kernel = kernels.connectTo({ model: { id, name: 'python3' } });
    this.kernel.connectionStatusChanged.connect((_, connection) => say({ status: name, connection }));
    // Also what the library itself would pass over, as a second reply.
    this.kernel.anyMessage.connect((_, { msg, direction }) => {
      if (direction === 'recv' && msg.header.msg_type === 'execute_reply') {
        this.hear(msg);
      }
    });
  }

  hear({ header, parent_header, content }) {
    let text = content.text ?? content.execution_state ?? '';
    if (text.length > LARGE) {
      text = digest(text);
    }
    const key = this.keys.get(parent_header.msg_id);
    if (this.heard.length === 0) {
      // Together with what else comes in this turn.
      setImmediate(() => {
        say({ heard: this.name, messages: this.heard });
        this.heard = [];
      });
    }
    this.heard.push([key, header.msg_type, text, content.name === 'stderr', header.date ?? '']);
  }

  ask(key, code) {
    const future = this.kernel.requestExecute({ code });
    this.keys.set(future.msg.header.msg_id, key);
    // What a notebook would show.
    future.onIOPub = message => this.hear(message);
    future.done.catch(console.error);
  }
}

for await (const line of commands) {
  const command = JSON.parse(line);
  if (command.open) {
    seats.set(command.open, new Seat(command.open, command.kernel));
  } else {
    seats.get(command.seat).ask(command.ask, command.code);
  }
}
process.exit(0);
