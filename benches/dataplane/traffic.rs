//! What packets notice of the rules.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::cost::quantile;
use crate::kernel::lab::Lab;
use crate::ours::FIRST_PORT;

/// How many mappings are there.
pub(crate) const SIZES: [usize; 3] = [1, 1_000, 10_000];

const ROUNDS: usize = 5;
const CONNECTIONS: usize = 400;
const TRANSFER: Duration = Duration::from_millis(700);

/// What a client saw of the last mapping.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    connects: Vec<Duration>,
    /// Gigabits per second of one established connection, of each round.
    throughput: Vec<f64>,
}

impl Traffic {
    /// Microseconds until a connection was made; this part of all took less.
    pub(crate) fn connect(&self, per_mille: usize) -> f64 {
        quantile(self.connects.clone(), per_mille).as_secs_f64() * 1e6
    }

    /// The best round: whatever else runs can only slow it down.
    pub(crate) fn gigabits(&self) -> f64 {
        self.throughput.iter().copied().fold(0.0, f64::max)
    }
}

/// Measures nodes that were programmed with [`SIZES`] mappings each, in turns.
pub(crate) fn measure(labs: &[Lab]) -> Vec<Traffic> {
    let mut measured = vec![Traffic::default(); labs.len()];
    let external = |index: usize| format!("203.0.113.7:{}", FIRST_PORT + SIZES[index % SIZES.len()] - 1);
    for _ in 0..ROUNDS {
        for (index, (lab, traffic)) in labs.iter().zip(&mut measured).enumerate() {
            let _server = lab.a.serve("a", "0.0.0.0:80");
            lab.client.run(|| connect(&external(index), &mut traffic.connects));
        }
    }
    for _ in 0..ROUNDS {
        for (index, (lab, traffic)) in labs.iter().zip(&mut measured).enumerate() {
            let listener = lab.a.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
            let receiving = thread::spawn(move || receive(&listener));
            lab.client.run(|| send(&external(index)));
            traffic.throughput.push(receiving.join().unwrap());
        }
    }
    measured
}

fn connect(external: &str, connects: &mut Vec<Duration>) {
    let address = external.parse().unwrap();
    for _ in 0..CONNECTIONS {
        let started = Instant::now();
        let connection = TcpStream::connect_timeout(&address, Duration::from_secs(5));
        connects.push(started.elapsed());
        drop(connection.unwrap());
    }
}

fn send(external: &str) {
    let mut stream = TcpStream::connect(external).unwrap();
    let (bytes, started) = (vec![0; 128 * 1024], Instant::now());
    while started.elapsed() < TRANSFER {
        stream.write_all(&bytes).unwrap();
    }
}

fn receive(listener: &TcpListener) -> f64 {
    let (mut stream, _) = listener.accept().unwrap();
    let (mut buffer, mut total, started) = (vec![0; 256 * 1024], 0, Instant::now());
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return total as f64 * 8.0 / 1e9 / started.elapsed().as_secs_f64(),
            received => total += received,
        }
    }
}
