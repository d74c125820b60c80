//! fastwebsockets: hyper does the handshake, then a frame is written for each frame read.
//!
//! As in its echo example and its benchmark. It has no way to tell whether another frame is there
//! already (an abandoned `read_frame` loses its place), so each frame is a write of its own.

use fastwebsockets::{
    FragmentCollector, FragmentCollectorRead, Frame, OpCode, Payload, WebSocket, WebSocketError,
    upgrade::{UpgradeFut, upgrade},
};
use http_body_util::Empty;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task};

use crate::{
    MAX_MESSAGE,
    hub::{Hub, Member},
};

type Socket = WebSocket<TokioIo<Upgraded>>;

pub(crate) async fn serve(stream: TcpStream, hub: Option<Hub>) -> Option<()> {
    let service = service_fn(move |request| {
        let hub = hub.clone();
        async move { begin(request, hub) }
    });
    let io = TokioIo::new(stream);
    http1::Builder::new()
        .serve_connection(io, service)
        .with_upgrades()
        .await
        .ok()
}

fn begin(
    mut request: Request<Incoming>,
    hub: Option<Hub>,
) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let (response, upgraded) = upgrade(&mut request)?;
    task::spawn(task::unconstrained(open(upgraded, hub)));
    Ok(response)
}

async fn open(upgraded: UpgradeFut, hub: Option<Hub>) -> Option<()> {
    let mut socket = upgraded.await.ok()?;
    socket.set_max_message_size(MAX_MESSAGE);
    match hub {
        None => echo(socket).await,
        Some(hub) => pass_on(socket, hub.join()).await,
    }
}

async fn echo(socket: Socket) -> Option<()> {
    let mut socket = FragmentCollector::new(socket);
    loop {
        let frame = socket.read_frame().await.ok()?;
        match frame.opcode {
            OpCode::Close => return None,
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await.ok()?,
            _ => {}
        }
    }
}

/// Reads and writes in two tasks, since a read must not be abandoned.
async fn pass_on(socket: Socket, mut member: Member) -> Option<()> {
    let (read, mut write) = socket.split(tokio::io::split);
    let mut read = FragmentCollectorRead::new(read);
    let author = member.author.clone();
    task::spawn(async move {
        // Nothing obliges to answer here: clients of a broadcast neither ping nor close.
        let mut no_answer = |_| async { Ok::<_, WebSocketError>(()) };
        loop {
            let frame = read.read_frame(&mut no_answer).await.ok()?;
            match frame.opcode {
                OpCode::Close => return None::<()>,
                OpCode::Text | OpCode::Binary => {
                    let text = frame.opcode == OpCode::Text;
                    author.post(text, Bytes::copy_from_slice(&frame.payload));
                }
                _ => {}
            }
        }
    });
    loop {
        let post = member.next().await?;
        let opcode = if post.text {
            OpCode::Text
        } else {
            OpCode::Binary
        };
        let frame = Frame::new(true, opcode, None, Payload::Borrowed(&post.payload));
        write.write_frame(frame).await.ok()?;
    }
}
