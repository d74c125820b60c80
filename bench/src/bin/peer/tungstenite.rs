//! tungstenite as it is: blocking, a thread per connection. Not a rival, a reference.

use std::{
    io::Result,
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use tungstenite::{accept_with_config, protocol::WebSocketConfig};

/// Enough for an echo, so that thousands of threads fit.
const STACK: usize = 64 * 1024;

pub(crate) fn serve(addr: SocketAddr, config: WebSocketConfig) -> Result<()> {
    let listener = TcpListener::bind(addr)?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || echo(stream, config))?;
    }
}

fn echo(stream: TcpStream, config: WebSocketConfig) -> Option<()> {
    let mut socket = accept_with_config(stream, Some(config)).ok()?;
    loop {
        let message = socket.read().ok()?;
        if message.is_text() || message.is_binary() {
            socket.send(message).ok()?;
        }
    }
}
