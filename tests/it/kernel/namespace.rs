//! A network namespace without a name: it vanishes with the last descriptor, thread and socket that refers to it,
//! so a test that dies leaves nothing behind.

use std::fs;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than any answer takes on a busy machine. A lost SYN is sent again within it: [`Namespace::lost_syns`] tells.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often servers look whether they should stop.
const TICK: Duration = Duration::from_millis(20);

/// A network namespace.
pub(crate) struct Namespace(File);

#[expect(unsafe_code, reason = "no safe crate wraps unshare(2) and setns(2); both take plain integers here")]
fn enter(namespace: Option<&File>) -> io::Result<()> {
    // SAFETY: neither call touches memory; they change only which namespace the calling thread is in.
    let result = unsafe {
        match namespace {
            None => libc::unshare(libc::CLONE_NEWNET),
            Some(file) => libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET),
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Namespace {
    /// A new, empty namespace with loopback up.
    pub(crate) fn new() -> Self {
        let made = thread::spawn(|| {
            enter(None)?;
            File::open("/proc/thread-self/ns/net")
        });
        let file = made.join().unwrap().unwrap_or_else(|error| {
            panic!("cannot make a network namespace ({error}): the kernel tests need root or a user namespace, run them by `make test-rust`")
        });
        let namespace = Self(file);
        namespace.sh("ip link set lo up");
        // Without waiting for neighbours to object to an address, IPv6 works at once.
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0");
        namespace.sysctl("net/ipv6/conf/default/dad_transmits", "0");
        namespace
    }

    /// A path by which other programs find the namespace while it lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` in the namespace. Sockets that it makes and programs that it starts stay there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            enter(Some(&self.0)).unwrap();
            work()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs a shell script that must succeed and returns what it printed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.run(|| Command::new("sh").args(["-ec", script]).output()).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "{script}\n{stderr}\nThe kernel tests need: apt-get install iptables iproute2 conntrack nftables"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Sets a sysctl of the namespace.
    pub(crate) fn sysctl(&self, key: &str, value: &str) {
        self.run(|| fs::write(format!("/proc/sys/{key}"), value))
            .unwrap_or_else(|error| panic!("{key}: {error}"));
    }

    /// Whether the kernel has a sysctl.
    pub(crate) fn has_sysctl(&self, key: &str) -> bool {
        self.run(|| fs::exists(format!("/proc/sys/{key}")).unwrap())
    }

    /// Answers TCP connections and UDP packets on a port with its name and the address that the request came from.
    pub(crate) fn serve(&self, name: &'static str, address: &str) -> Server {
        let address: SocketAddr = address.parse().unwrap();
        let (tcp, udp) =
            self.run(|| (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap()));
        let stop = Arc::new(AtomicBool::new(false));
        let threads = vec![serve_tcp(name, tcp, &stop), serve_udp(name, udp, &stop)];
        Server { stop, threads }
    }

    /// A TCP connection; an error tells whether it was refused or nobody answered.
    pub(crate) fn connect(&self, to: &str) -> io::Result<Connection> {
        let to: SocketAddr = to.parse().unwrap();
        let stream = self.run(|| persistently(|| TcpStream::connect_timeout(&to, PATIENCE)))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection(BufReader::new(stream)))
    }

    /// Connects, and tells who answered and where the connection came from for them: `web 198.51.100.9`.
    pub(crate) fn tcp(&self, to: &str) -> Result<String, io::ErrorKind> {
        self.connect(to).and_then(|mut connection| connection.ask()).map_err(|error| normal(&error))
    }

    /// Connects like [`Namespace::tcp`], long enough for a lost SYN to be sent again.
    pub(crate) fn connect_patiently(&self, to: &str) -> io::Result<String> {
        let to: SocketAddr = to.parse().unwrap();
        let stream = self.run(|| persistently(|| TcpStream::connect_timeout(&to, 10 * PATIENCE)))?;
        Connection(BufReader::new(stream)).ask()
    }

    /// Waits until a neighbour refuses connections: a link that was just made may lose packets for a second.
    pub(crate) fn wait_for(&self, neighbour: IpAddr) {
        let closed = SocketAddr::new(neighbour, 9);
        let outcome = || TcpStream::connect_timeout(&closed, TICK).err().map(|error| error.kind());
        let refused = self.run(|| (0..500).any(|_| outcome() == Some(io::ErrorKind::ConnectionRefused)));
        assert!(refused, "{neighbour} cannot be reached");
    }

    /// How many SYNs the kernel sent again, because nobody answered the first one within a second.
    pub(crate) fn lost_syns(&self) -> u64 {
        let counters = self.run(|| fs::read_to_string("/proc/thread-self/net/netstat")).unwrap();
        let mut lines = counters.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
        let (names, values) = (lines.next().unwrap().split(' '), lines.next().unwrap().split(' '));
        let (_, lost) = names.zip(values).find(|(name, _)| *name == "TCPSynRetrans").unwrap();
        lost.parse().unwrap()
    }

    /// A UDP socket whose packets all belong to one flow.
    pub(crate) fn flow(&self, to: &str) -> Flow {
        let to: SocketAddr = to.parse().unwrap();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.run(|| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            Ok::<_, io::Error>(socket)
        });
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Flow(socket)
    }

    /// Asks by UDP, from a new port.
    pub(crate) fn udp(&self, to: &str) -> Result<String, io::ErrorKind> {
        self.flow(to).ask()
    }
}

/// Goes on when a signal interrupts: the end of every program that a test starts is one.
fn persistently<T>(mut ask: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match ask() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            asked => return asked,
        }
    }
}

/// `TimedOut` however the platform says it.
fn normal(error: &io::Error) -> io::ErrorKind {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut,
        kind => kind,
    }
}

/// A TCP connection to a [`Server`].
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Sends a line and reads the answer.
    pub(crate) fn ask(&mut self) -> io::Result<String> {
        self.0.get_mut().write_all(b"?\n")?;
        let mut answer = String::new();
        match persistently(|| self.0.read_line(&mut answer))? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(answer.trim().to_owned()),
        }
    }

    /// Its port on this side.
    pub(crate) fn port(&self) -> u16 {
        self.0.get_ref().local_addr().unwrap().port()
    }
}

/// A UDP flow to a [`Server`].
pub(crate) struct Flow(UdpSocket);

impl Flow {
    /// Sends a packet and reads the answer.
    pub(crate) fn ask(&self) -> Result<String, io::ErrorKind> {
        let mut answer = [0; 200];
        let asked = self.0.send(b"?").and_then(|_| persistently(|| self.0.recv(&mut answer)));
        asked
            .map(|length| String::from_utf8_lossy(&answer[..length]).into_owned())
            .map_err(|error| normal(&error))
    }
}

/// Answers until it is dropped.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer(name: &str, peer: SocketAddr) -> String {
    let peer = match peer.ip() {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 @ IpAddr::V4(_) => v4,
    };
    format!("{name} {peer}")
}

fn serve_tcp(name: &'static str, listener: TcpListener, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let stop = Arc::clone(stop);
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let mut connections: Vec<(TcpStream, SocketAddr)> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let mut idle = true;
            while let Ok((stream, peer)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                connections.push((stream, peer));
                idle = false;
            }
            connections.retain_mut(|(stream, peer)| {
                let mut request = [0; 16];
                match io::Read::read(stream, &mut request) {
                    Ok(0) => false,
                    Ok(_) => {
                        idle = false;
                        writeln!(stream, "{}", answer(name, *peer)).is_ok()
                    }
                    Err(error) => error.kind() == io::ErrorKind::WouldBlock,
                }
            });
            if idle {
                thread::sleep(Duration::from_millis(1));
            }
        }
    })
}

fn serve_udp(name: &'static str, socket: UdpSocket, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let stop = Arc::clone(stop);
    socket.set_read_timeout(Some(TICK)).unwrap();
    thread::spawn(move || {
        let mut request = [0; 16];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((_, peer)) = socket.recv_from(&mut request) {
                let _ = socket.send_to(answer(name, peer).as_bytes(), peer);
            }
        }
    })
}
