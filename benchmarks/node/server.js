// nodemailer's smtp-server as its documentation has it, with a handler that takes every mail and keeps none.
'use strict';

const { SMTPServer } = require('smtp-server');

const server = new SMTPServer({
  disabledCommands: ['AUTH', 'STARTTLS'],
  disableReverseLookup: true, // mailpipe makes no name lookups either
  onData(stream, session, done) {
    stream.on('end', () => done());
    stream.resume();
  },
});

server.on('error', (error) => console.error(error.message));
server.listen(0, '127.0.0.1', () => {
  console.log(`listening on 127.0.0.1:${server.server.address().port}`);
});
