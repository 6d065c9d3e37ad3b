//! Who may connect, by lists that are too long to stand at each entry, and what becomes of connections when such a list
//! changes.

use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use pinhole::model::handover::UdpHandover;
use pinhole::ruleset::endpoint::Endpoint;

use crate::kernel::lab::A;
use crate::kernel::lab::B;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;
use crate::kernel::lab::only_from;
use crate::kernel::lab::terminating;
use crate::kernel::namespace::Namespace;
use crate::kernel::rewriting::while_connecting;
use crate::kernel::with_every_backend;

/// As many networks, of which no two make one, and the client's among them.
fn list(others: u32) -> Vec<String> {
    let other = |n: u32| format!("11.{}.{}.0/24", n >> 7, (n & 0x7f) << 1);
    (0..others).map(other).chain(["198.51.100.8/30".to_owned(), "2001:db8:51::/64".to_owned()]).collect()
}

fn from(endpoint: Endpoint, list: &[String]) -> Endpoint {
    only_from(endpoint, &list.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Ports of pod a that share a list.
fn sharing(list: &[String]) -> Vec<Endpoint> {
    let ports = (80..100).map(|port| endpoint(&format!("{port}/tcp"), "a", A));
    let more = ["80/udp", "7000-7010/tcp"].map(|ports| endpoint(ports, "a", A));
    ports.chain(more).map(|endpoint| from(endpoint, list)).collect()
}

/// Lets pod b, which no list has, ask all the while; how often it asked, and what it was answered.
fn while_a_stranger_asks(lab: &mut Lab, change: impl FnOnce(&mut Lab)) -> (usize, usize) {
    let stranger = std::mem::replace(&mut lab.b, Namespace::new());
    let done = AtomicBool::new(false);
    let counted = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let socket = stranger.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
            socket.connect("203.0.113.7:80").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let (mut asked, mut answered) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                asked += usize::from(socket.send(b"?").is_ok());
                answered += usize::from(socket.recv(&mut [0; 100]).is_ok());
            }
            (asked, answered)
        });
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(lab)));
        done.store(true, Ordering::Relaxed);
        let counted = asking.join().unwrap();
        changed.unwrap();
        counted
    });
    lab.b = stranger;
    counted
}

fn r53_a_long_list_is_held_once_and_changes_without_a_gap_or_a_leak(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    let lists = [list(2000), list(1999), list(16), list(5)];
    lab.apply(&sharing(&lists[0]));
    let saved = lab.saved();
    assert_eq!(saved.matches("11.5.16.0/24").count(), 1, "it is there once, whoever refers to it");
    assert_eq!(lab.client.tcp("[2001:db8::7]:80"), Ok("a 2001:db8:51::9".into()));
    lab.read();
    assert_eq!(lab.apply(&sharing(&lists[0])).transactions, [], "it is read as it was written");

    let (asked, answered) = while_a_stranger_asks(lab, |lab| {
        while_connecting(lab, |lab| {
            for list in lists.iter().cycle().skip(1).take(12) {
                let expected = if lab.is_nftables() { 3 } else { 1 };
                assert_eq!(lab.apply(&sharing(list)).transactions.len(), expected);
            }
        });
    });
    assert!(50 < asked, "only {asked} questions were asked");
    assert_eq!(answered, 0, "of {asked}");

    let list_of = |lab: &Lab| if lab.is_nftables() { "set s_list_" } else { ":PINHOLE-L-" };
    let count = |lab: &Lab| lab.saved().matches(list_of(lab)).count();
    lab.apply(&sharing(&lists[0]));
    assert_ne!(count(lab), 0);
    assert_eq!(lab.client.udp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    lab.apply(&sharing(&list(20)[..20]));
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Err(ErrorKind::TimedOut), "its network is not in this list");
    lab.apply(&sharing(&lists[3]));
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    // Short ones stand at each entry of iptables. nftables has one list of each family.
    let short = if lab.is_nftables() { 2 } else { 0 };
    assert_eq!(count(lab), short, "a list goes with the last entry that refers to it");
}

/// Lets pod b, which no list has, try to connect all the while to ports of restricted ranges; how often it tried, and how often
/// the pod behind them answered, be it by refusing.
fn while_a_stranger_connects(lab: &mut Lab, change: impl FnOnce(&mut Lab)) -> (usize, usize) {
    let stranger = std::mem::replace(&mut lab.b, Namespace::new());
    let done = AtomicBool::new(false);
    let counted = thread::scope(|scope| {
        let trying = scope.spawn(|| {
            let (mut tried, mut answered) = (0, 0);
            let ports =
                ["203.0.113.7:80", "203.0.113.7:7305", "203.0.113.8:9003"].map(|to| to.parse().unwrap());
            for to in ports.iter().cycle().take_while(|_| !done.load(Ordering::Relaxed)) {
                tried += 1;
                let connected = stranger.run(|| TcpStream::connect_timeout(to, Duration::from_millis(3)));
                let is_answered =
                    connected.map_or_else(|error| error.kind() != ErrorKind::TimedOut, |_| true);
                answered += usize::from(is_answered);
            }
            (tried, answered)
        });
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(lab)));
        done.store(true, Ordering::Relaxed);
        let counted = trying.join().unwrap();
        changed.unwrap();
        counted
    });
    lab.b = stranger;
    counted
}

fn r53_lists_of_several_ranges_that_change_at_once_lose_nobody_and_let_no_stranger_in(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    // Long and short, of networks that come and go; the client's is in all of them, a stranger's in none.
    let lists = [list(120), list(90), list(16), list(40), list(3)];
    let wanted = |turn: usize| {
        let list = |place: usize| lists.iter().cycle().nth(turn + place).unwrap();
        let same = |ports: &str, place| from(endpoint(ports, "a", A), list(place));
        [
            same("80-90/tcp", 0),
            same("7000-7010/udp", 0),
            same("7300-7310/tcp", 1),
            same("203.0.113.8:9000-9005/tcp", 2),
        ]
    };
    lab.apply(&wanted(0));
    let (tried, answered) = while_a_stranger_connects(lab, |lab| {
        while_connecting(lab, |lab| {
            for turn in 1..60 {
                assert_ne!(lab.apply(&wanted(turn)).transactions, [], "the lists of every range are others");
            }
        });
    });
    assert!(50 < tried, "only {tried} connections were tried");
    assert_eq!(answered, 0, "of {tried}");
    lab.read();
    assert_eq!(lab.apply(&wanted(59)).transactions, [], "nothing is left to do");
}

fn r26_r53_a_long_list_that_others_alter_is_repaired(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    let wanted = sharing(&list(100));
    lab.apply(&wanted);
    let made = lab.saved();
    let name = |stem: &str| {
        let (_, rest) = made.split_once(stem).unwrap();
        format!("{stem}{}", &rest[..13])
    };
    let damages = if lab.is_nftables() {
        let (set, chain) = (name("s_list_"), name("c_list_"));
        vec![
            format!("nft delete element ip PINHOLE {set} '{{ 198.51.100.8/30 }}'"),
            format!("nft flush chain ip PINHOLE {chain}"),
            format!("nft add element ip PINHOLE {set} '{{ 10.244.1.0/24 }}'"),
        ]
    } else {
        let chain = name("PINHOLE-L-");
        vec![
            lab.command("iptables", &format!("-t nat -F {chain}")),
            lab.command("iptables", &format!("-t nat -I {chain} -s 10.244.1.0/24 -j RETURN")),
        ]
    };
    for damage in damages {
        lab.node.sh(&damage);
        lab.read();
        assert_ne!(lab.apply(&wanted).transactions, [], "{damage}");
        assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()), "{damage}");
        assert_eq!(lab.b.tcp("203.0.113.7:80"), Err(ErrorKind::TimedOut), "{damage}");
    }
}

fn a_connection_ends_with_its_permission_where_that_was_asked_for(lab: &mut Lab) {
    let (_a, _b) = (lab.a.serve("a", "[::]:80"), lab.b.serve("b", "[::]:80"));
    let both = ["198.51.100.0/24", "10.244.1.0/24"].map(str::to_owned);
    let wanted = |ends: &[String], lives: &[String]| {
        [
            terminating(from(endpoint("80/tcp", "a", A), ends)),
            terminating(from(endpoint("81/tcp", "a", A), ends)),
            from(endpoint("203.0.113.8:80/tcp", "b", B), lives),
        ]
    };
    lab.apply(&wanted(&both, &both));
    let connect = |client: &Namespace, to: &str| {
        let mut connection = client.connect(to).unwrap();
        connection.ask().unwrap();
        connection
    };
    let mut ended = connect(&lab.client, "203.0.113.7:80");
    let mut allowed = connect(&lab.b, "203.0.113.7:80");
    let mut living = connect(&lab.client, "203.0.113.8:80");
    let listener = lab.a.run(|| TcpListener::bind("[::]:81")).unwrap();
    let mut hearing = lab.client.run(|| TcpStream::connect("203.0.113.7:81")).unwrap();
    hearing.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let (mut speaking, _) = listener.accept().unwrap();
    let mut heard = [0; 8];
    speaking.write_all(b"one").unwrap();
    assert_eq!(hearing.read(&mut heard).unwrap(), 3);

    lab.hand_over(&wanted(&both[1..], &both[1..]), &[], UdpHandover::Drain);
    // Whoever speaks first: the pod's packets must not begin the connection again.
    speaking.write_all(b"two").unwrap();
    assert!(hearing.read(&mut heard).is_err(), "what the pod sends does not arrive");
    assert!(ended.ask().is_err(), "what the client sends does not arrive");
    assert_eq!(living.ask().unwrap(), "b 198.51.100.9", "it was not asked for at this port");
    assert!(allowed.ask().unwrap().starts_with("a "), "its source may still connect");
}

with_every_backend!(
    r53_a_long_list_is_held_once_and_changes_without_a_gap_or_a_leak,
    r53_lists_of_several_ranges_that_change_at_once_lose_nobody_and_let_no_stranger_in,
    r26_r53_a_long_list_that_others_alter_is_repaired,
    a_connection_ends_with_its_permission_where_that_was_asked_for,
);
