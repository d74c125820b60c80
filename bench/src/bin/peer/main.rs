//! The servers that framemill is compared with, one subcommand each.
//!
//! Each is written the way its own documentation recommends for speed: one tokio thread (the server
//! has one core), TCP_NODELAY, no cooperative budget, and where the library can queue messages
//! apart from flushing them, one flush for all messages that one read brought. `--flush-each` is what
//! most programs do instead.
//!
//! `--broadcast` makes them pass every message on to all connections but the one it came from,
//! `--publish` to those that have the topic whose turn it is. `--threads` gives tokio more than one.

mod fastwebsockets;
mod hub;
mod tokio_tungstenite;
mod tokio_websockets;
mod tungstenite;

use std::{
    fs,
    future::Future,
    io::{Error, Result},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{Parser, ValueEnum};
use tokio::{
    net::{TcpListener, TcpStream},
    task,
};

use crate::{hub::Hub, tokio_tungstenite::Flush};

/// The longest message accepted, by those that have a limit.
const MAX_MESSAGE: usize = 32 * 1024 * 1024 + 1024;

#[derive(Parser)]
#[command(about = "Echo servers of other WebSocket libraries")]
struct Args {
    #[arg(value_enum)]
    library: Library,
    /// HOST:PORT
    #[arg(long, default_value = "127.0.0.1:0")]
    addr: SocketAddr,
    /// Pass messages on to all other connections instead of echoing them
    #[arg(long)]
    broadcast: bool,
    /// Pass messages on to the subscribers of a topic instead: the m-th to topic m modulo --topics
    #[arg(long, conflicts_with = "broadcast")]
    publish: bool,
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    topics: usize,
    /// A connection has so many topics, the n-th those that are n modulo --topics over this
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    subscriptions: usize,
    /// Threads of tokio; without this, the one that runs anyway
    #[arg(long, value_parser = at_least_one)]
    threads: Option<usize>,
    /// Bytes of read buffer per connection (tungstenite and tokio-tungstenite). The default is
    /// theirs; they recommend 4096 where there are many connections.
    #[arg(long, default_value_t = 128 * 1024)]
    read_buffer: usize,
    /// Flush after each message instead of after each read (tokio-tungstenite, echo): what a loop of
    /// `socket.send(message).await` does
    #[arg(long, conflicts_with_all = ["broadcast", "publish"])]
    flush_each: bool,
    /// TLS through native-tls, with this certificate and the key in PKCS#8 (PEM; tokio-tungstenite)
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Library {
    TokioTungstenite,
    Fastwebsockets,
    TokioWebsockets,
    /// Without async: a thread per connection. Echo only.
    Tungstenite,
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "not a number".to_owned())?;
    (number > 0)
        .then_some(number)
        .ok_or_else(|| "at least 1".to_owned())
}

fn main() -> Result<()> {
    let args = Args::parse();
    let hub = match (args.broadcast, args.publish) {
        (true, _) => Some(Hub::broadcast()),
        (_, true) => Some(Hub::publish(args.topics, args.subscriptions)),
        _ => None,
    };
    let config = ::tungstenite::protocol::WebSocketConfig::default()
        .read_buffer_size(args.read_buffer)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let tls = match (&args.tls_cert, &args.tls_key, args.library) {
        (Some(certificate), Some(key), Library::TokioTungstenite) => Some(tls(certificate, key)?),
        (None, None, _) => None,
        _ => return Err(Error::other("TLS is for tokio-tungstenite")),
    };
    match args.library {
        Library::TokioTungstenite => serve(&args, |stream| {
            let flush = if args.flush_each {
                Flush::EachMessage
            } else {
                Flush::EachRead
            };
            tokio_tungstenite::serve(stream, config, hub.clone(), tls.clone(), flush)
        }),
        Library::Fastwebsockets => {
            serve(&args, |stream| fastwebsockets::serve(stream, hub.clone()))
        }
        Library::TokioWebsockets => {
            serve(&args, |stream| tokio_websockets::serve(stream, hub.clone()))
        }
        Library::Tungstenite => tungstenite::serve(args.addr, config),
    }
}

/// As native-tls comes, but for TLS 1.0 and 1.1.
fn tls(certificate: &Path, key: &Path) -> Result<tokio_native_tls::TlsAcceptor> {
    let identity = native_tls::Identity::from_pkcs8(&fs::read(certificate)?, &fs::read(key)?);
    let acceptor = native_tls::TlsAcceptor::builder(identity.map_err(Error::other)?)
        .min_protocol_version(Some(native_tls::Protocol::Tlsv12))
        .build()
        .map_err(Error::other)?;
    Ok(acceptor.into())
}

/// Accepts for ever, each connection a task that ends when the connection does, for whatever
/// reason: the client is the one to tell that something is wrong.
fn serve<F>(args: &Args, mut connection: impl FnMut(TcpStream) -> F) -> Result<()>
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    use tokio::runtime::Builder;
    let mut builder = match args.threads {
        None => Builder::new_current_thread(),
        Some(_) => Builder::new_multi_thread(),
    };
    if let Some(threads) = args.threads {
        builder.worker_threads(threads);
    }
    let runtime = builder.enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.addr).await?;
        println!("listening on {}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(task::unconstrained(connection(stream)));
        }
    })
}
