//! tokio-websockets: all messages that are there are read, fed, then flushed once.
//!
//! Frame size and limits as in its own benchmark server. Reading flushes what was fed before, hence
//! the vector in between.

use std::mem;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_websockets::{Config, Limits, Message, Payload, ServerBuilder, WebSocketStream};

use crate::{
    MAX_MESSAGE,
    hub::{Hub, Member, Post},
};

type Socket = WebSocketStream<TcpStream>;

/// Bytes to queue before they are written without a flush: as many as tungstenite does.
const FLUSH_THRESHOLD: usize = 128 * 1024;

pub(crate) async fn serve(stream: TcpStream, hub: Option<Hub>) -> Option<()> {
    let (_, socket) = ServerBuilder::new()
        .config(
            Config::default()
                .frame_size(usize::MAX)
                .flush_threshold(FLUSH_THRESHOLD),
        )
        .limits(Limits::default().max_payload_len(Some(MAX_MESSAGE)))
        .accept(stream)
        .await
        .ok()?;
    match hub {
        None => echo(socket).await,
        Some(hub) => pass_on(socket, hub.join()).await,
    }
}

async fn echo(mut socket: Socket) -> Option<()> {
    let mut batch = Vec::new();
    loop {
        batch.push(socket.next().await?.ok()?);
        while let Some(next) = socket.next().now_or_never() {
            batch.push(next?.ok()?);
        }
        for message in mem::take(&mut batch) {
            if message.is_text() || message.is_binary() {
                socket.feed(message).await.ok()?;
            }
        }
        socket.flush().await.ok()?;
    }
}

async fn pass_on(mut socket: Socket, mut member: Member) -> Option<()> {
    loop {
        tokio::select! {
            message = socket.next() => {
                let message = message?.ok()?;
                if message.is_text() || message.is_binary() {
                    member.author.post(message.is_text(), message.into_payload().into());
                }
            }
            post = member.next() => {
                let mut post = post?;
                loop {
                    socket.feed(frame(post)).await.ok()?;
                    match member.try_next() {
                        Some(next) => post = next,
                        None => break,
                    }
                }
                socket.flush().await.ok()?;
            }
        }
    }
}

fn frame(post: Post) -> Message {
    let payload = Payload::from(post.payload);
    if post.text {
        Message::text(payload)
    } else {
        Message::binary(payload)
    }
}
