// A real OpenID provider, over TLS on the loopback interface.
//
// The first line on stdin has its settings; each line after that is a set of private keys that it
// publishes from then on, the first of which signs; an empty line asks how often each path was
// asked for. Every line is answered by one on stdout.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { createInterface } from 'node:readline';

import { Provider } from 'oidc-provider';

// What the provider says for people is not for who reads stdout.
console.info = console.error;

const counts = {};
let settings;
let handle;

// What is wanted of it: another audience, another lifetime.
const RESOURCES = {
  'urn:relay': { audience: 'relay', accessTokenTTL: 600 },
  'urn:relay:short': { audience: 'relay', accessTokenTTL: 10 },
  'urn:other': { audience: 'other', accessTokenTTL: 600 },
};

function provider(keys) {
  return new Provider(settings.issuer, {
    clients: Object.keys(settings.clients).map((id) => ({
      client_id: id,
      client_secret: settings.secret,
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
    })),
    cookies: { keys: [settings.secret] },
    extraTokenClaims: (_, token) => ({ groups: settings.clients[token.clientId] }),
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => ({
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg: 'RS256', kid: keys[0].kid } },
          scope: 'kernels',
          ...RESOURCES[resource],
        }),
      },
    },
    jwks: { keys },
    scopes: ['kernels'],
  }).callback();
}

function serve(line) {
  settings = JSON.parse(line);
  const server = createServer(
    { cert: readFileSync(settings.certificate), key: readFileSync(settings.key) },
    (request, response) => {
      counts[request.url] = (counts[request.url] ?? 0) + 1;
      handle(request, response);
    },
  );
  handle = provider(settings.keys);
  server.listen(settings.port, '127.0.0.1', () => say({}));
}

function say(answer) {
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}

for await (const line of createInterface({ input: process.stdin })) {
  if (settings === undefined) {
    serve(line);
  } else {
    if (line) {
      handle = provider(JSON.parse(line));
    }
    say(counts);
  }
}
process.exit();
