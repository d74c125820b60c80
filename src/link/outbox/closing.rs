//! The end of an outbox: it is sealed, gets a close frame as its last, or is abandoned.

use super::queue::Queue;
use super::{Life, Outbox};
use crate::message::{CloseCause, CloseCode, Utf8Bytes};
use crate::proto::{Opcode, truncate_reason};

/// How and why this side closes.
#[derive(Clone, Debug)]
pub(crate) struct LocalClose {
    pub(crate) code: CloseCode,
    pub(crate) text: Utf8Bytes,
    pub(crate) cause: CloseCause,
    /// Size of the close frame once it is queued; 0 before.
    pub(super) frame_len: usize,
    /// Queued since the loop was last told.
    pub(super) untold: bool,
    /// It was written: what is still counted comes too late to be sent.
    pub(super) written: bool,
}

impl LocalClose {
    pub(crate) fn was_written(&self) -> bool {
        self.written
    }
}

impl Outbox {
    /// Queues a close frame behind everything else and refuses what comes after it. `false` if that
    /// was done before.
    pub(in crate::link) fn close(
        &mut self,
        code: CloseCode,
        text: &str,
        cause: CloseCause,
    ) -> bool {
        let sealed = self.seal(code, text, cause);
        if sealed {
            self.push_close_frame();
        }
        sealed
    }

    /// Refuses what comes from now on; the close frame itself follows with
    /// [`push_close_frame`](Self::push_close_frame).
    pub(crate) fn seal(&mut self, code: CloseCode, text: &str, cause: CloseCause) -> bool {
        if self.life == Life::Gone || self.local_close().is_some() {
            return false;
        }
        let writable = self.is_writable();
        if !writable {
            // There is nobody to be told, so it is over.
            self.life = Life::Gone;
        }
        self.aside().local_close = Some(LocalClose {
            code,
            // There is no room for one without a code.
            text: match code {
                CloseCode::Status => Utf8Bytes::default(),
                _ => truncate_reason(text).into(),
            },
            cause,
            frame_len: 0,
            untold: !writable,
            written: false,
        });
        true
    }

    /// Queues the close frame.
    pub(crate) fn push_close_frame(&mut self) {
        if !self.is_writable() {
            return;
        }
        let Some(close) = self.local_close().filter(|close| close.frame_len == 0) else {
            return;
        };
        let mut body = Vec::with_capacity(2 + close.text.len());
        // 1005 stands for a close frame without a code.
        if close.code != CloseCode::Status {
            body.extend_from_slice(&u16::from(close.code).to_be_bytes());
            body.extend_from_slice(close.text.as_bytes());
        }
        self.add_control(Opcode::Close, &body);
        let frame_len = self.frame_len(body.len());
        if let Some(close) = self.local_close_mut() {
            close.frame_len = frame_len;
            close.untold = true;
        }
    }

    /// The connection is gone, or about to go.
    pub(crate) fn is_gone(&self) -> bool {
        self.life == Life::Gone
    }

    pub(in crate::link) fn is_writable(&self) -> bool {
        self.life == Life::Writable
    }

    /// Nothing more is accepted.
    #[inline]
    pub(crate) fn is_sealed(&self) -> bool {
        !self.is_writable() || self.local_close().is_some()
    }

    /// Nothing more will be queued: the close frame is, or the connection is gone.
    pub(crate) fn is_finished(&self) -> bool {
        !self.is_writable() || self.local_close().is_some_and(|close| close.frame_len > 0)
    }

    pub(crate) fn local_close(&self) -> Option<&LocalClose> {
        self.aside.as_ref()?.local_close.as_ref()
    }

    /// Bytes of messages that nobody will deliver if the connection ends now.
    pub(crate) fn undelivered(&self) -> usize {
        let waiting = self.local_close().filter(|close| !close.written);
        let close_frame = waiting.map_or(0, |close| close.frame_len);
        let discarded = self.aside.as_ref().map_or(0, |aside| aside.discarded);
        let queued = self.queued().saturating_sub(close_frame) as u64;
        let all = discarded.saturating_add(queued);
        all.try_into().unwrap_or(usize::MAX)
    }

    /// The connection is gone: nothing is accepted any more and nothing kept. `false`: it was gone before.
    pub(crate) fn abandon(&mut self) -> bool {
        let before = std::mem::replace(&mut self.life, Life::Gone);
        self.throw_away();
        before != Life::Gone
    }

    /// A write has failed: nothing is accepted any more and nothing kept, but what has arrived is still read.
    /// `false`: the connection was gone before.
    pub(crate) fn lose_writing(&mut self) -> bool {
        if self.life == Life::Gone {
            return false;
        }
        self.life = Life::Unwritable;
        self.throw_away();
        true
    }

    fn throw_away(&mut self) {
        // Our close frame is no message that could be missed.
        let unwritten = self.local_close_mut().filter(|close| !close.written);
        let len = unwritten.map_or(0, |close| std::mem::take(&mut close.frame_len));
        self.queued = self.queued.saturating_sub(len as u32);
        self.buf = None;
        if let Some(aside) = &mut self.aside {
            aside.queue = Queue::default();
        }
    }

    pub(super) fn local_close_mut(&mut self) -> Option<&mut LocalClose> {
        self.aside.as_mut()?.local_close.as_mut()
    }
}
