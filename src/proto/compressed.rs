//! How a compressed message travels inside the engine: as tungstenite's raw frame, [`Message::Frame`],
//! with RSV1 set (RFC 7692 §6) and the whole payload.
//!
//! It is inflated before user code sees it and compressed after user code sent it, so that the loops
//! only move it.

use bytes::Bytes;
use tungstenite::protocol::Message;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

use super::frame::{FirstByte, Opcode};

/// A text or binary message whose payload is compressed.
pub(crate) fn compressed_message(opcode: Opcode, payload: Bytes) -> Message {
    let data = match opcode {
        Opcode::Text => Data::Text,
        _ => Data::Binary,
    };
    let header = FrameHeader {
        rsv1: true,
        opcode: OpCode::Data(data),
        ..FrameHeader::default()
    };
    Message::Frame(Frame::from_payload(header, payload))
}

/// The kind and the compressed payload of such a message; `None` for all others.
#[cfg(feature = "deflate")]
pub(crate) fn compressed_parts(message: &Message) -> Option<(Opcode, &[u8])> {
    let Message::Frame(frame) = message else {
        return None;
    };
    let opcode = match frame.header().opcode {
        OpCode::Data(Data::Text) => Opcode::Text,
        _ => Opcode::Binary,
    };
    Some((opcode, frame.payload()))
}

/// The first byte and the payload of a data message, compressed or not; `None` for others.
#[inline(always)] // on the path of every message that is sent
pub(crate) fn data_frame(message: &Message) -> Option<(FirstByte, &[u8])> {
    Some(match message {
        Message::Text(text) => (Opcode::Text.into(), text.as_bytes()),
        Message::Binary(payload) => (Opcode::Binary.into(), payload),
        Message::Frame(frame) => {
            let opcode = match frame.header().opcode {
                OpCode::Data(Data::Text) => Opcode::Text,
                OpCode::Data(Data::Binary) => Opcode::Binary,
                _ => return None,
            };
            (FirstByte::compressed(opcode), frame.payload())
        }
        _ => return None,
    })
}
