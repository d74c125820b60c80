//! uWebSockets, by way of a shared object that is looked for when this runs.
//!
//! There is no crate of it. The Python package socketify carries it, compiled, with a C interface of
//! plain functions (`foreign/prepare.sh` gets it); what of that interface is needed is declared here.
//! It runs on libuv, with BoringSSL for TLS and zlib for compression.
//!
//! As its examples recommend for speed: the answer is sent from the message handler, where the
//! library collects what it sends until the read has been gone through ("corked"); broadcast and
//! publish are its own publish and subscribe.

use std::{
    cell::Cell,
    ffi::{CStr, CString, c_char, c_int, c_uint, c_ushort, c_void},
    io::{Error, Result},
    net::SocketAddr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    ptr,
};

use clap::{Parser, ValueEnum};

#[derive(Parser)]
#[command(about = "Echo server of uWebSockets")]
struct Args {
    #[arg(value_enum)]
    mode: Mode,
    /// libsocketify_linux_amd64.so of the Python package socketify
    #[arg(long)]
    library: PathBuf,
    /// HOST:PORT
    #[arg(long, default_value = "127.0.0.1:0")]
    addr: SocketAddr,
    /// Mode publish: the m-th message goes to topic m modulo this
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    topics: usize,
    /// Mode publish: a connection has so many topics, the n-th those that are n modulo their number
    /// over this
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    subscriptions: usize,
    /// permessage-deflate, each message for itself, with one compressor for all connections
    #[arg(long)]
    deflate: bool,
    /// TLS, with this certificate and the key (PEM)
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Echo,
    /// To all but the sender.
    Broadcast,
    /// To the subscribers of one topic after the other.
    Publish,
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "not a number".to_owned())?;
    (number > 0)
        .then_some(number)
        .ok_or_else(|| "at least 1".to_owned())
}

/// Things of the library that are only pointed to.
type App = c_void;
type Socket = c_void;

/// `us_socket_context_options_t`.
#[repr(C)]
struct Tls {
    key_file_name: *const c_char,
    cert_file_name: *const c_char,
    passphrase: *const c_char,
    dh_params_file_name: *const c_char,
    ca_file_name: *const c_char,
    ssl_ciphers: *const c_char,
    ssl_prefer_low_memory_usage: c_int,
}

/// `uws_app_listen_config_t`.
#[repr(C)]
struct Listen {
    port: c_int,
    host: *const c_char,
    options: c_int,
}

/// `uws_socket_behavior_t`.
#[repr(C)]
struct Behavior {
    compression: c_int,
    max_payload_length: c_uint,
    /// In seconds; 0 for none.
    idle_timeout: c_ushort,
    max_backpressure: c_uint,
    close_on_backpressure_limit: bool,
    reset_idle_timeout_on_send: bool,
    send_pings_automatically: bool,
    max_lifetime: c_ushort,
    upgrade: Option<unsafe extern "C" fn()>,
    open: Option<unsafe extern "C" fn(*mut Socket, *mut c_void)>,
    message: Option<Message>,
    drain: Option<unsafe extern "C" fn()>,
    ping: Option<unsafe extern "C" fn()>,
    pong: Option<unsafe extern "C" fn()>,
    close: Option<unsafe extern "C" fn()>,
    subscription: Option<unsafe extern "C" fn()>,
}

type Message = unsafe extern "C" fn(*mut Socket, *const c_char, usize, c_int, *mut c_void);

/// `SHARED_COMPRESSOR | SHARED_DECOMPRESSOR`.
const SHARED: c_int = 1 | 1 << 8;

const MAX_MESSAGE: c_uint = 32 * 1024 * 1024 + 1024;
const MAX_BACKPRESSURE: c_uint = 64 * 1024 * 1024;
const TOPIC: &CStr = c"all";

type Send = unsafe extern "C" fn(
    ssl: c_int,
    *mut Socket,
    *const c_char,
    usize,
    opcode: c_int,
    compress: bool,
    fin: bool,
) -> c_int;
type Publish = unsafe extern "C" fn(
    ssl: c_int,
    *mut Socket,
    topic: *const c_char,
    usize,
    *const c_char,
    usize,
    opcode: c_int,
    compress: bool,
) -> bool;
type AppPublish = unsafe extern "C" fn(
    ssl: c_int,
    *mut App,
    topic: *const c_char,
    usize,
    *const c_char,
    usize,
    opcode: c_int,
    compress: bool,
) -> bool;
type Subscribe = unsafe extern "C" fn(ssl: c_int, *mut Socket, *const c_char, usize) -> bool;
type Listening = unsafe extern "C" fn(*mut c_void, Listen, *mut c_void);

/// What the handlers need. There is one, and it lives as long as the process.
struct Server {
    mode: Mode,
    ssl: c_int,
    deflate: bool,
    /// By number, for `Mode::Publish`.
    topics: Vec<CString>,
    /// So many connections after another have no topic in common.
    groups: usize,
    opened: Cell<usize>,
    published: Cell<usize>,
    /// Known once it has been made.
    app: Cell<*mut App>,
    send: Send,
    publish: Publish,
    app_publish: AppPublish,
    subscribe: Subscribe,
    local_port: unsafe extern "C" fn(ssl: c_int, *mut c_void) -> c_int,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let library = Library::open(&args.library)?;
    let topics = (0..args.topics).map(|n| CString::new(format!("topic {n}")));
    let topics = topics.collect::<std::result::Result<Vec<_>, _>>()?;
    // SAFETY: the signatures are those that the package declares for these names.
    unsafe {
        let server: &'static Server = Box::leak(Box::new(Server {
            mode: args.mode,
            ssl: c_int::from(args.tls_cert.is_some()),
            deflate: args.deflate,
            topics,
            groups: (args.topics / args.subscriptions).max(1),
            opened: Cell::new(0),
            published: Cell::new(0),
            app: Cell::new(ptr::null_mut()),
            send: library.get(c"uws_ws_send_with_options")?,
            publish: library.get(c"uws_ws_publish_with_options")?,
            app_publish: library.get(c"uws_publish")?,
            subscribe: library.get(c"uws_ws_subscribe")?,
            local_port: library.get(c"us_socket_local_port")?,
        }));
        serve(&library, server, &args)
    }
}

/// # Safety
/// The library has to be what it is taken for.
unsafe fn serve(library: &Library, server: &'static Server, args: &Args) -> Result<()> {
    let path = |path: &Option<PathBuf>| {
        let path = path.as_ref().map(|path| path.as_os_str().as_bytes());
        path.map(CString::new).transpose()
    };
    let (key, certificate) = (path(&args.tls_key)?, path(&args.tls_cert)?);
    let pointer = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
    let tls = Tls {
        key_file_name: pointer(&key),
        cert_file_name: pointer(&certificate),
        passphrase: ptr::null(),
        dh_params_file_name: ptr::null(),
        ca_file_name: ptr::null(),
        ssl_ciphers: ptr::null(),
        ssl_prefer_low_memory_usage: 0,
    };
    let host = CString::new(args.addr.ip().to_string())?;
    let listen = Listen {
        port: args.addr.port().into(),
        host: host.as_ptr(),
        options: 0,
    };
    let (ssl, data) = (server.ssl, ptr::from_ref(server).cast_mut().cast());
    unsafe {
        let create: unsafe extern "C" fn(c_int, Tls) -> *mut App =
            library.get(c"uws_create_app")?;
        let failed: unsafe extern "C" fn(c_int, *mut App) -> bool =
            library.get(c"uws_constructor_failed")?;
        let ws: unsafe extern "C" fn(c_int, *mut App, *const c_char, Behavior, *mut c_void) =
            library.get(c"uws_ws")?;
        let listen_on: unsafe extern "C" fn(c_int, *mut App, Listen, Listening, *mut c_void) =
            library.get(c"uws_app_listen_with_config")?;
        let run: unsafe extern "C" fn(c_int, *mut App) = library.get(c"uws_app_run")?;

        let app = create(ssl, tls);
        if app.is_null() || failed(ssl, app) {
            return Err(Error::other(
                "no app: are the certificate and the key right?",
            ));
        }
        server.app.set(app);
        ws(ssl, app, c"/*".as_ptr(), behavior(server), data);
        listen_on(ssl, app, listen, listening, data);
        run(ssl, app);
    }
    Err(Error::other("the loop has ended"))
}

fn behavior(server: &Server) -> Behavior {
    Behavior {
        compression: if server.deflate { SHARED } else { 0 },
        max_payload_length: MAX_MESSAGE,
        idle_timeout: 0,
        max_backpressure: MAX_BACKPRESSURE,
        close_on_backpressure_limit: false,
        reset_idle_timeout_on_send: false,
        send_pings_automatically: false,
        max_lifetime: 0,
        upgrade: None,
        open: Some(open),
        message: Some(message),
        drain: None,
        ping: None,
        pong: None,
        close: None,
        subscription: None,
    }
}

unsafe extern "C" fn listening(socket: *mut c_void, config: Listen, data: *mut c_void) {
    if socket.is_null() {
        eprintln!("uws: cannot listen");
        std::process::exit(1);
    }
    // SAFETY: the library gives back what it was given.
    unsafe {
        let server = &*data.cast::<Server>();
        let host = CStr::from_ptr(config.host).to_string_lossy();
        let port = (server.local_port)(server.ssl, socket);
        println!("listening on {host}:{port}");
    }
}

unsafe extern "C" fn open(socket: *mut Socket, data: *mut c_void) {
    // SAFETY: as in `listening`.
    unsafe {
        let server = &*data.cast::<Server>();
        let subscribe = |topic: &CStr| {
            (server.subscribe)(server.ssl, socket, topic.as_ptr(), topic.count_bytes());
        };
        match server.mode {
            Mode::Echo => {}
            Mode::Broadcast => subscribe(TOPIC),
            Mode::Publish => {
                let group = server.opened.get() % server.groups;
                server.opened.set(server.opened.get() + 1);
                let topics = server.topics[group..].iter().step_by(server.groups);
                topics.for_each(|topic| subscribe(topic));
            }
        }
    }
}

unsafe extern "C" fn message(
    socket: *mut Socket,
    text: *const c_char,
    length: usize,
    opcode: c_int,
    data: *mut c_void,
) {
    // SAFETY: as in `listening`.
    unsafe {
        let server = &*data.cast::<Server>();
        let (ssl, deflate) = (server.ssl, server.deflate);
        match server.mode {
            Mode::Echo => {
                (server.send)(ssl, socket, text, length, opcode, deflate, true);
            }
            Mode::Broadcast => {
                let (topic, topic_len) = (TOPIC.as_ptr(), TOPIC.count_bytes());
                (server.publish)(ssl, socket, topic, topic_len, text, length, opcode, deflate);
            }
            Mode::Publish => {
                let topic = &server.topics[server.published.get() % server.topics.len()];
                server.published.set(server.published.get() + 1);
                let (topic, topic_len) = (topic.as_ptr(), topic.count_bytes());
                let app = server.app.get();
                (server.app_publish)(ssl, app, topic, topic_len, text, length, opcode, deflate);
            }
        }
    }
}

/// A shared object. Never closed.
struct Library(*mut c_void);

impl Library {
    fn open(path: &Path) -> Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: runs what the library has to run on being loaded; it is trusted with more.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        match library.is_null() {
            true => Err(problem()),
            false => Ok(Self(library)),
        }
    }

    /// # Safety
    /// `F` has to be the type of the function of this name.
    unsafe fn get<F: Copy>(&self, name: &CStr) -> Result<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        // SAFETY: the library is open, and the caller knows the type.
        unsafe {
            let function = libc::dlsym(self.0, name.as_ptr());
            match function.is_null() {
                true => Err(problem()),
                false => Ok(std::mem::transmute_copy(&function)),
            }
        }
    }
}

fn problem() -> Error {
    // SAFETY: a text of the C library, or none.
    let text = unsafe {
        match libc::dlerror() {
            text if text.is_null() => "no reason given".into(),
            text => CStr::from_ptr(text).to_string_lossy().into_owned(),
        }
    };
    Error::other(text)
}
