//! The TLS handshake of a connection, before its first byte counts.
//!
//! A handshake costs a signature, milliseconds with a large RSA key, and a loop has others to serve:
//! the stream goes to a worker as an event, makes one step there, and comes back as a command. With
//! handlers inline the loop makes the step itself.
//!
//! While the stream is away, readiness is only noted: a step that had to wait is taken again if
//! anything was announced meanwhile.

use std::io;

use super::conn::{Conn, Context};
use super::liveness::Moment;
use super::upstream::Upstream;
use crate::error::Error;
use crate::link::Event;
use crate::metrics::Refusal;
use crate::net::{Stream, TlsError, TlsStream};
use crate::proto::Role;

impl Conn {
    /// The next step of the handshake, if something was announced since the last.
    pub(super) fn secure<U: Upstream>(&mut self, cx: &mut Context<'_, U>) {
        if !self.readable || self.gone {
            return;
        }
        if let Some(mut stream) = self.stream.lend() {
            self.readable = false;
            stream.socket_readable(self.hung_up);
            if cx.upstream.is_inline() {
                let step = stream.handshake();
                self.secured(stream, step, cx);
            } else {
                cx.batch.push_back(Event::Secure(stream));
                self.deliver(cx);
            }
        }
    }

    /// The stream is back.
    pub(super) fn secured<U: Upstream>(
        &mut self,
        stream: Box<TlsStream>,
        step: io::Result<bool>,
        cx: &mut Context<'_, U>,
    ) {
        self.stream = Stream::Tls(stream);
        // It is the peer's turn.
        self.last_seen = Moment::at(cx.now);
        // While it was away, room may have been announced.
        self.dirty |= self.stream.has_pending();
        match step {
            Ok(true) => {
                match U::ROLE {
                    Role::Client => self.ask_for_websocket(cx),
                    Role::Server => self.leave_handshake(),
                }
                // What follows may be in here already.
                self.readable = true;
                self.stream.note_readable(self.hung_up);
            }
            Ok(false) => self.readable |= self.stream.has_buffered(),
            Err(error) => {
                self.log_failed_handshake(&error);
                match U::ROLE {
                    Role::Client => self.not_secured(error, cx),
                    Role::Server => {
                        let why = match TlsError::of(&error) {
                            Some(_) => Refusal::Tls,
                            None => Refusal::HungUp,
                        };
                        self.count_refusal(why);
                    }
                }
                self.gone = true;
                return;
            }
        }
        if self.hung_up && self.is_securing() && !self.readable {
            // It has left in the middle, and the step above has seen all that it sent.
            if U::ROLE == Role::Client {
                self.not_answered(cx);
            }
            self.gone = true;
        }
        self.again |= self.readable;
    }

    /// The handshake is through, or given up. That of a connection over a limit was never counted.
    pub(super) fn leave_handshake(&self) {
        if !self.is_refused() {
            self.peer.link.handle.shared.leave_handshake();
        }
    }

    /// A server that hangs up may be there again soon; one that can't be trusted, or speaks no TLS, is as it
    /// is.
    fn not_secured<U: Upstream>(&mut self, error: io::Error, cx: &mut Context<'_, U>) {
        match TlsError::of(&error) {
            Some(why) => self.not_opened(Error::Tls(why.to_string()), cx),
            None => self.not_connected(error, cx),
        }
    }

    fn log_failed_handshake(&self, error: &io::Error) {
        let id = self.peer.link.id;
        match TlsError::of(error) {
            Some(why) => log::debug!("{id}: TLS failed: {why}"),
            None => log::debug!("{id}: hung up in the TLS handshake: {error}"),
        }
    }
}
