//! tokio-tungstenite: messages are fed as long as they come without waiting, then flushed once.
//!
//! Its echo example does the same through `split` and `forward`, which flushes when nothing more
//! can be read. Without the split, the lock between the halves is spared.

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_native_tls::TlsAcceptor;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::WebSocketConfig},
};

use crate::hub::{Hub, Member, Post};

pub(crate) async fn serve(
    stream: TcpStream,
    config: WebSocketConfig,
    hub: Option<Hub>,
    tls: Option<TlsAcceptor>,
    flush: Flush,
) -> Option<()> {
    match tls {
        None => open(stream, config, hub, flush).await,
        Some(tls) => open(tls.accept(stream).await.ok()?, config, hub, flush).await,
    }
}

/// When echoes are written.
#[derive(Clone, Copy)]
pub(crate) enum Flush {
    EachRead,
    EachMessage,
}

async fn open<S>(stream: S, config: WebSocketConfig, hub: Option<Hub>, flush: Flush) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let socket = tokio_tungstenite::accept_async_with_config(stream, Some(config))
        .await
        .ok()?;
    match hub {
        None => match flush {
            Flush::EachRead => echo(socket).await,
            Flush::EachMessage => echo_each(socket).await,
        },
        Some(hub) => pass_on(socket, hub.join()).await,
    }
}

async fn echo<S>(mut socket: WebSocketStream<S>) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let mut message = socket.next().await?.ok()?;
        loop {
            if message.is_text() || message.is_binary() {
                socket.feed(message).await.ok()?;
            }
            match socket.next().now_or_never() {
                Some(next) => message = next?.ok()?,
                None => break,
            }
        }
        socket.flush().await.ok()?;
    }
}

async fn echo_each<S>(mut socket: WebSocketStream<S>) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let message = socket.next().await?.ok()?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await.ok()?;
        }
    }
}

async fn pass_on<S>(mut socket: WebSocketStream<S>, mut member: Member) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        tokio::select! {
            message = socket.next() => {
                let message = message?.ok()?;
                if message.is_text() || message.is_binary() {
                    member.author.post(message.is_text(), message.into_data());
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
    match post.text {
        true => Message::Text(post.payload.try_into().expect("was text when it came")),
        false => Message::Binary(post.payload),
    }
}
