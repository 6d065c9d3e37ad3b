//! Others that do the same work, as they do it.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use pinhole::dataplane::settings::Firewall;
use pinhole::dataplane::settings::Flavor;

use crate::cost::Costs;
use crate::cost::timed;
use crate::kernel::lab::Lab;
use crate::ours::FIRST_PORT;
use crate::traffic;
use crate::traffic::Traffic;

const PORTMAP: &str = "/usr/lib/cni/portmap";

/// How many mappings are programmed one program at a time, and how often. More would take hours.
pub(crate) const EXECUTED: [(usize, usize); 2] = [(100, 3), (300, 1)];
/// How many mappings are there when one is added, and how often.
pub(crate) const ADDED: [(usize, usize); 4] = [(0, 5), (100, 5), (1_000, 3), (10_000, 1)];

/// What they took with one flavour of iptables.
pub(crate) struct Measured {
    pub(crate) flavor: Flavor,
    /// For each of [`EXECUTED`].
    pub(crate) executed_cold: Vec<Costs>,
    /// Adding one mapping with 10 000 there.
    pub(crate) executed_add: Costs,
    /// The ADD of the portmap plugin, for each of [`ADDED`].
    pub(crate) portmap_add: Vec<Costs>,
    /// For each of [`traffic::SIZES`].
    pub(crate) executed_traffic: Vec<Traffic>,
    pub(crate) portmap_traffic: Vec<Traffic>,
}

/// Measures all of them.
pub(crate) fn measure() -> Vec<Measured> {
    let mut all: Vec<_> = Flavor::ALL.into_iter().map(Measured::new).collect();
    let mut labs = Vec::new();
    for measured in &all {
        for load in [load_executed, load_portmap] {
            for size in traffic::SIZES {
                let lab = Lab::new(Firewall::Iptables(measured.flavor));
                load(&lab, size);
                labs.push(lab);
            }
        }
    }
    let traffic = traffic::measure(&labs);
    for (measured, traffic) in all.iter_mut().zip(traffic.chunks(2 * traffic::SIZES.len())) {
        let (executed, portmap) = traffic.split_at(traffic::SIZES.len());
        (measured.executed_traffic, measured.portmap_traffic) = (executed.into(), portmap.into());
    }
    all
}

impl Measured {
    fn new(flavor: Flavor) -> Self {
        let mut executed_cold = Vec::new();
        for (size, runs) in EXECUTED {
            let mut costs = Costs::default();
            for _ in 0..runs {
                let lab = Lab::new(Firewall::Iptables(flavor));
                load_executed(&lab, 0);
                costs.add(timed(|| (0..size).for_each(|index| execute(&lab, index))).1);
            }
            executed_cold.push(costs);
        }
        let mut executed_add = Costs::default();
        let lab = Lab::new(Firewall::Iptables(flavor));
        load_executed(&lab, 10_000);
        for index in 10_000..10_005 {
            executed_add.add(timed(|| execute(&lab, index)).1);
        }
        let mut portmap_add = Vec::new();
        for (size, runs) in ADDED {
            let lab = Lab::new(Firewall::Iptables(flavor));
            load_portmap(&lab, size);
            let programs = programs(&lab);
            let mut costs = Costs::default();
            for index in size..size + runs {
                costs.add(timed(|| portmap(&lab, &programs, index)).1);
            }
            portmap_add.push(costs);
        }
        let (executed_traffic, portmap_traffic) = (Vec::new(), Vec::new());
        Self { flavor, executed_cold, executed_add, portmap_add, executed_traffic, portmap_traffic }
    }
}

/// The rules of podnat-controller for one mapping: table, and the rule.
fn executed_rules(index: usize) -> [(&'static str, String); 3] {
    let (port, pod) = (FIRST_PORT + index, "10.244.1.9");
    [
        (
            "filter",
            format!(
                "PODNAT_FORWARD -d {pod}/32 -p tcp -m conntrack --ctstate NEW -m tcp --dport 80 -m comment --comment default:pod-{index} -j ACCEPT"
            ),
        ),
        (
            "nat",
            format!(
                "PODNAT_PRE -d 203.0.113.7/32 -p tcp -m tcp --dport {port} -m comment --comment default:pod-{index} -j DNAT --to-destination {pod}:80"
            ),
        ),
        (
            "nat",
            format!(
                "PODNAT_POST -s {pod}/32 -p tcp -m comment --comment default:pod-{index} -j SNAT --to-source 203.0.113.7"
            ),
        ),
    ]
}

/// As podnat-controller adds a mapping at its best: each rule is looked for, and then added.
fn execute(lab: &Lab, index: usize) {
    for (table, rule) in executed_rules(index) {
        for action in ["-C", "-A"] {
            let mut command = lab.node.run(|| {
                let mut command = Command::new(format!("iptables-{}", lab.flavor));
                command.args(["-w", "5", "-t", table, action]).args(rule.split(' '));
                command.env("XTABLES_LOCKFILE", lab.directory().join("xtables.lock"));
                command.stderr(Stdio::null()).spawn().unwrap()
            });
            let found = command.wait().unwrap().success();
            assert_eq!(found, action == "-A", "{rule}");
        }
    }
}

fn restore(lab: &Lab, text: &str) {
    let path = lab.directory().join("rules");
    fs::write(&path, text).unwrap();
    lab.node.sh(&lab.command("iptables", &format!("-restore --noflush -w 5 < '{}'", path.display())));
}

/// The rules of podnat-controller for this many mappings.
fn load_executed(lab: &Lab, size: usize) {
    let mut filter = "*filter\n:PODNAT_FORWARD - [0:0]\n-A FORWARD -j PODNAT_FORWARD\n".to_owned();
    let mut nat = "*nat\n:PODNAT_PRE - [0:0]\n:PODNAT_POST - [0:0]\n-A PREROUTING -j PODNAT_PRE\n-A POSTROUTING -j PODNAT_POST\n".to_owned();
    for (table, rule) in (0..size).flat_map(executed_rules) {
        writeln!(if table == "nat" { &mut nat } else { &mut filter }, "-A {rule}").unwrap();
    }
    restore(lab, &format!("{filter}COMMIT\n{nat}COMMIT\n"));
}

/// The rules that the portmap plugin leaves for this many pods with a port each.
fn load_portmap(lab: &Lab, size: usize) {
    let (mut chains, mut rules) = (String::new(), String::new());
    for index in 0..size {
        let (port, chain) = (FIRST_PORT + index, format!("CNI-DN-{index:021x}"));
        writeln!(chains, ":{chain} - [0:0]").unwrap();
        for source in ["10.244.1.0/24", "127.0.0.1/32"] {
            writeln!(rules, "-A {chain} -s {source} -p tcp -m tcp --dport {port} -j CNI-HOSTPORT-SETMARK")
                .unwrap();
        }
        writeln!(rules, "-A {chain} -p tcp -m tcp --dport {port} -j DNAT --to-destination 10.244.1.9:80")
            .unwrap();
        writeln!(rules, "-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"bench\\\" id: \\\"c{index}\\\"\" -m multiport --dports {port} -j {chain}").unwrap();
    }
    let fixed =
        "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-HOSTPORT-MASQ - [0:0]\n:CNI-HOSTPORT-SETMARK - [0:0]\n";
    let jumps = "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
                 -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
                 -A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ\n\
                 -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n\
                 -A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000\n";
    restore(lab, &format!("{fixed}{chains}{jumps}{rules}COMMIT\n"));
}

/// A directory in which `iptables` is the lab's flavour of it.
fn programs(lab: &Lab) -> PathBuf {
    let directory = lab.directory().join("programs");
    fs::create_dir(&directory).unwrap();
    for base in ["iptables", "ip6tables"] {
        for action in ["", "-save", "-restore"] {
            let real = lab.node.sh(&format!("command -v {base}-{}{action}", lab.flavor));
            symlink(real.trim(), directory.join(format!("{base}{action}"))).unwrap();
        }
    }
    directory
}

/// The plugin's ADD for one pod with one port.
fn portmap(lab: &Lab, programs: &std::path::Path, index: usize) {
    let config = serde_json::json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "portmap", "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": [{"hostPort": FIRST_PORT + index, "containerPort": 80, "protocol": "tcp"}]},
        "prevResult": {"cniVersion": "1.0.0", "interfaces": [], "ips": [{"address": "10.244.1.9/24"}]},
    });
    let mut plugin = lab.node.run(|| {
        let mut command = Command::new(PORTMAP);
        command.envs([("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/usr/lib/cni")]);
        command.env("CNI_CONTAINERID", format!("c{index}")).env("CNI_NETNS", lab.a.path());
        command.env("PATH", programs).env("XTABLES_LOCKFILE", lab.directory().join("xtables.lock"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("{PORTMAP}: {error}; `make bench-dataplane` installs containernetworking-plugins")
        })
    });
    plugin.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = plugin.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
