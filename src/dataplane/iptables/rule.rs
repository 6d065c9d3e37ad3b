//! One rule of ours as a value, and the one place that knows how iptables spells it.
//!
//! Rules are compared as values, never as text: `iptables-save` re-spells what it was given (`/32` added, `-m tcp`
//! added, comments quoted), differently in each flavour.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::interface::InterfaceName;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// A rule that this program writes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Only packets from here.
    pub source: Option<IpNet>,
    /// Only packets to there.
    pub destination: Option<IpNet>,
    /// Only packets that come in by this interface.
    pub input: Option<InterfaceName>,
    /// Only packets that leave by this interface.
    pub output: Option<InterfaceName>,
    /// Only packets of this protocol.
    pub protocol: Option<Protocol>,
    /// Only packets to these ports.
    pub ports: Option<PortRange>,
    /// Further conditions, all of which must hold.
    pub matches: Vec<Match>,
    /// Whose the rule is.
    pub comment: Option<Arc<str>>,
    /// What happens.
    pub action: Action,
}

/// A condition on a packet or its connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// The connection is in one of these states.
    State(Vec<State>),
    /// The connection's destination was not rewritten.
    NotDnat,
    /// These bits of the connection mark are so.
    Connmark(Bits),
    /// These bits of the packet mark are so.
    Mark(Bits),
    /// The packet goes back to where the connection came from.
    Reply,
    /// The destination is not an address of the node.
    NotLocal,
    /// A TCP packet that does not begin a connection.
    NotSyn,
}

/// Some bits of a mark, and what they are. The others are not looked at, and not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bits {
    /// Which bits are set.
    value: u32,
    /// Which bits are meant; never all of them.
    mask: u32,
}

impl Bits {
    /// `bit` is set.
    pub const fn set(bit: u32) -> Self {
        Self { value: bit, mask: bit }
    }

    /// The bits of `mask` are as in `value`.
    pub const fn within(value: u32, mask: u32) -> Self {
        Self { value: value & mask, mask }
    }

    /// Reads `0x1000/0x1000`.
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        let (value, mask) = text.split_once('/')?;
        let (value, mask) = (number(value)?, number(mask)?);
        (value & !mask == 0 && mask != u32::MAX).then_some(Self { value, mask })
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

/// A state of a connection, in the order in which iptables prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Belongs to no connection.
    Invalid,
    /// Starts a connection.
    New,
    /// Belongs to a connection that another one announced, or reports an error of one.
    Related,
    /// Belongs to a connection that was answered.
    Established,
    /// The connection's destination was rewritten.
    Dnat,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// It goes on.
    Accept,
    /// It vanishes.
    Drop,
    /// The chain that led here goes on.
    Return,
    /// Another chain decides, and this one goes on when that returns.
    Jump(String),
    /// Another chain decides, and the one that led here goes on when that returns.
    Goto(String),
    /// The connection's destination is rewritten.
    Dnat {
        /// The new destination address.
        to: IpAddr,
        /// The new ports; `None` keeps the port. A range has the same number of ports as the rule matches.
        ports: Option<PortRange>,
    },
    /// The connection's source is rewritten.
    Snat(IpAddr),
    /// The connection's source becomes the address of the interface it leaves by.
    Masquerade,
    /// These bits of the connection mark become so.
    SetConnmark(Bits),
    /// These bits of the packet mark become so.
    SetMark(Bits),
}

impl Rule {
    /// A rule without conditions.
    pub const fn new(action: Action) -> Self {
        Self {
            source: None,
            destination: None,
            input: None,
            output: None,
            protocol: None,
            ports: None,
            matches: Vec::new(),
            comment: None,
            action,
        }
    }

    /// Only packets from `net`.
    pub fn from(mut self, net: IpNet) -> Self {
        self.source = Some(net);
        self
    }

    /// Only packets to `net`.
    pub fn to(mut self, net: IpNet) -> Self {
        self.destination = Some(net);
        self
    }

    /// Only packets that come in by `interface`.
    pub const fn input(mut self, interface: InterfaceName) -> Self {
        self.input = Some(interface);
        self
    }

    /// Only packets that leave by `interface`.
    pub const fn output(mut self, interface: InterfaceName) -> Self {
        self.output = Some(interface);
        self
    }

    /// Only packets of `protocol`.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Only packets of `protocol` to `ports`.
    pub fn ports(self, protocol: Protocol, ports: PortRange) -> Self {
        Self { ports: Some(ports), ..self.protocol(protocol) }
    }

    /// Only packets for which `condition` holds too.
    pub fn when(mut self, condition: Match) -> Self {
        self.matches.push(condition);
        self
    }

    /// With `comment`, which must need no quoting.
    pub fn comment(mut self, comment: impl Into<Arc<str>>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

impl fmt::Display for Rule {
    /// As an iptables command line without the chain: `-d 203.0.113.7/32 -p tcp -j PINHOLE-T-CB007107`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = self.source {
            write!(f, "-s {source} ")?;
        }
        if let Some(destination) = self.destination {
            write!(f, "-d {destination} ")?;
        }
        if let Some(input) = self.input {
            write!(f, "-i {input} ")?;
        }
        if let Some(output) = self.output {
            write!(f, "-o {output} ")?;
        }
        if let Some(protocol) = self.protocol {
            write!(f, "-p {protocol} ")?;
        }
        if let (Some(protocol), Some(ports)) = (self.protocol, self.ports) {
            write!(f, "-m {protocol} --dport {} ", Ports(ports, ':'))?;
        }
        for condition in &self.matches {
            match condition {
                Match::State(states) => {
                    let names: Vec<_> = states.iter().map(|state| state.name()).collect();
                    write!(f, "-m conntrack --ctstate {} ", names.join(","))?;
                }
                Match::NotDnat => f.write_str("-m conntrack ! --ctstate DNAT ")?,
                Match::Connmark(bits) => write!(f, "-m connmark --mark {bits} ")?,
                Match::Mark(bits) => write!(f, "-m mark --mark {bits} ")?,
                Match::Reply => f.write_str("-m conntrack --ctdir REPLY ")?,
                Match::NotLocal => f.write_str("-m addrtype ! --dst-type LOCAL ")?,
                Match::NotSyn => f.write_str("-m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN ")?,
            }
        }
        if let Some(comment) = &self.comment {
            write!(f, "-m comment --comment {comment} ")?;
        }
        match &self.action {
            Action::Accept => f.write_str("-j ACCEPT"),
            Action::Drop => f.write_str("-j DROP"),
            Action::Return => f.write_str("-j RETURN"),
            Action::Jump(chain) => write!(f, "-j {chain}"),
            Action::Goto(chain) => write!(f, "-g {chain}"),
            Action::Dnat { to, ports: None } => write!(f, "-j DNAT --to-destination {to}"),
            Action::Dnat { to, ports: Some(ports) } => {
                match to {
                    IpAddr::V4(to) => write!(f, "-j DNAT --to-destination {to}:{}", Ports(*ports, '-'))?,
                    IpAddr::V6(to) => write!(f, "-j DNAT --to-destination [{to}]:{}", Ports(*ports, '-'))?,
                }
                // Without the base, the kernel may choose any port of the range.
                match self.ports {
                    Some(matched) if !ports.is_single() => write!(f, "/{}", matched.first()),
                    _ => Ok(()),
                }
            }
            Action::Snat(address) => write!(f, "-j SNAT --to-source {address}"),
            Action::Masquerade => f.write_str("-j MASQUERADE --random-fully"),
            Action::SetConnmark(bits) => write!(f, "-j CONNMARK --set-xmark {bits}"),
            Action::SetMark(bits) => write!(f, "-j MARK --set-xmark {bits}"),
        }
    }
}

impl State {
    const ALL: [Self; 5] = [Self::Invalid, Self::New, Self::Related, Self::Established, Self::Dnat];

    const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "INVALID",
            Self::New => "NEW",
            Self::Related => "RELATED",
            Self::Established => "ESTABLISHED",
            Self::Dnat => "DNAT",
        }
    }
}

struct Ports(PortRange, char);

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(ports, separator) = *self;
        if ports.is_single() {
            ports.fmt(f)
        } else {
            write!(f, "{}{separator}{}", ports.first(), ports.last())
        }
    }
}

/// Reads a rule as `iptables-save` spells it, split into words. `None` for every rule that this program never
/// writes.
pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Option<Rule> {
    let mut rule = Rule::new(Action::Return);
    let mut action = None;
    let mut module = "";
    let mut negated = false;
    let mut words = words;
    while let Some(word) = words.next() {
        if std::mem::take(&mut negated) {
            rule.matches.push(match (word, words.next()?) {
                ("--ctstate", "DNAT") => Match::NotDnat,
                ("--dst-type", "LOCAL") => Match::NotLocal,
                ("--tcp-flags", "FIN,SYN,RST,ACK") if words.next()? == "SYN" => Match::NotSyn,
                _ => return None,
            });
            continue;
        }
        match word {
            "!" => negated = true,
            "-s" => rule.source = Some(net(words.next()?)?),
            "-d" => rule.destination = Some(net(words.next()?)?),
            "-i" => rule.input = Some(words.next()?.parse().ok()?),
            "-o" => rule.output = Some(words.next()?.parse().ok()?),
            "-p" => rule.protocol = Some(protocol(words.next()?)?),
            "-m" => module = words.next()?,
            "--dport" if rule.protocol.is_some() => rule.ports = Some(ports(words.next()?, ':')?),
            "--comment" => rule.comment = Some(words.next()?.into()),
            "--ctstate" => rule.matches.push(Match::State(states(words.next()?)?)),
            "--mark" if module == "connmark" => {
                rule.matches.push(Match::Connmark(Bits::parse(words.next()?)?));
            }
            "--mark" => rule.matches.push(Match::Mark(Bits::parse(words.next()?)?)),
            "--ctdir" => match words.next()? {
                "REPLY" => rule.matches.push(Match::Reply),
                _ => return None,
            },
            "-g" => action = Some(Action::Goto(chain(words.next()?)?)),
            "-j" => action = Some(parse_action(words.next()?, &mut words, rule.ports)?),
            _ => return None,
        }
    }
    rule.action = action?;
    // By their interface, only connections are told apart by us, never what becomes of them.
    let is_ours = rule.input.is_none() || matches!(rule.action, Action::SetConnmark(_));
    is_ours.then_some(rule)
}

/// Reads what follows `-j`, which is always last.
fn parse_action<'a>(
    name: &str,
    words: &mut impl Iterator<Item = &'a str>,
    matched: Option<PortRange>,
) -> Option<Action> {
    let option = words.next();
    let value = words.next();
    let rest = words.next();
    match (name, option, value, rest) {
        ("ACCEPT", None, None, None) => Some(Action::Accept),
        ("DROP", None, None, None) => Some(Action::Drop),
        ("RETURN", None, None, None) => Some(Action::Return),
        ("MASQUERADE", Some("--random-fully"), None, None) => Some(Action::Masquerade),
        ("SNAT", Some("--to-source"), Some(to), None) => Some(Action::Snat(to.parse().ok()?)),
        ("CONNMARK", Some("--set-xmark"), Some(to), None) => Some(Action::SetConnmark(Bits::parse(to)?)),
        ("MARK", Some("--set-xmark"), Some(to), None) => Some(Action::SetMark(Bits::parse(to)?)),
        ("DNAT", Some("--to-destination"), Some(to), None) => parse_dnat(to, matched),
        ("DNAT" | "SNAT" | "MASQUERADE" | "CONNMARK" | "MARK", ..) => None,
        (name, None, None, None) => Some(Action::Jump(chain(name)?)),
        _ => None,
    }
}

/// Reads `203.0.113.7`, `203.0.113.7:80`, `203.0.113.7:80-90/8000` and the same with `[2001:db8::1]`.
fn parse_dnat(text: &str, matched: Option<PortRange>) -> Option<Action> {
    if let Ok(to) = text.parse() {
        return Some(Action::Dnat { to, ports: None });
    }
    let (to, mapped) = text.rsplit_once(':')?;
    let to = to.strip_prefix('[').and_then(|to| to.strip_suffix(']')).unwrap_or(to).parse().ok()?;
    let (mapped, base) = mapped.split_once('/').map_or((mapped, None), |(mapped, base)| (mapped, Some(base)));
    let mapped = ports(mapped, '-')?;
    let offset = match base {
        // A range without its base lets the kernel choose the port.
        None => mapped.is_single(),
        Some(base) => matched.is_some_and(|matched| base.parse() == Ok(matched.first())),
    };
    offset.then_some(Action::Dnat { to, ports: Some(mapped) })
}

/// The name of a chain, as it can stand in a line of its own.
fn chain(text: &str) -> Option<String> {
    let is_plain =
        !text.is_empty() && text.chars().all(|each| each.is_ascii_graphic() && !matches!(each, '"' | '\\'));
    is_plain.then(|| text.to_owned())
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn protocol(text: &str) -> Option<Protocol> {
    // Numbers are printed where /etc/protocols is missing.
    match text {
        "6" => Some(Protocol::Tcp),
        "17" => Some(Protocol::Udp),
        "132" => Some(Protocol::Sctp),
        _ => text.parse().ok(),
    }
}

fn ports(text: &str, separator: char) -> Option<PortRange> {
    match text.split_once(separator) {
        None => Some(PortRange::single(text.parse().ok()?)),
        Some((first, last)) => PortRange::new(first.parse().ok()?, last.parse().ok()?),
    }
}

fn states(text: &str) -> Option<Vec<State>> {
    let known = |name: &str| State::ALL.into_iter().find(|state| state.name() == name);
    let mut states: Vec<_> = text.split(',').map(known).collect::<Option<_>>()?;
    states.sort_unstable();
    Some(states)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Rule> {
        parse(text.split(' '))
    }

    #[test]
    fn rules_are_read_as_both_flavours_print_them() {
        for printed in [
            "-d 203.0.113.7/32 -p tcp -j PINHOLE-T-CB007107",
            "-p tcp -m tcp --dport 1:63 -j PINHOLE-T-CB007107-000",
            "-s 198.51.100.0/24 -p udp -m udp --dport 53 -m comment --comment default/dns:00c0ffee -j DNAT --to-destination 10.244.1.9:5353",
            "-p sctp -m sctp --dport 7000:7010 -m comment --comment a/b:00c0ffee -j DNAT --to-destination 10.244.1.9:8000-8010/7000",
            "-p tcp -m tcp --dport 443 -m comment --comment a/b:00c0ffee -j DNAT --to-destination [fd00::9]:8443",
            "-p tcp -m tcp --dport 7000:7010 -m comment --comment a/b:00c0ffee -j DNAT --to-destination fd00::9",
            "-p tcp -m tcp --dport 25 -j CONNMARK --set-xmark 0x1000/0x1000",
            "-m connmark --mark 0x1000/0x1000 -m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j DROP",
            "-m mark --mark 0x4000/0x4000 -j RETURN",
            "-i eth1 -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x10/0x70",
            "-m connmark --mark 0x1070/0x1070 -m conntrack --ctdir REPLY -j MARK --set-xmark 0x70/0x70",
            "-s 10.244.1.0/24 -m conntrack --ctstate DNAT -m connmark --mark 0x1000/0x1000 -j MASQUERADE --random-fully",
            "-s 10.244.1.9/32 -m comment --comment a/b:00c0ffee -j SNAT --to-source 203.0.113.7",
            "-s 10.244.1.9/32 -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP",
            "-s 198.51.0.0/16 -g PINHOLE-L-PQC7I5SILNDM5-001",
            "-s 10.244.1.0/24 -o wg0 -j ACCEPT",
            "-s 10.244.1.0/24 -m addrtype ! --dst-type LOCAL -j MASQUERADE --random-fully",
        ] {
            assert_eq!(read(printed).unwrap_or_else(|| panic!("{printed}")).to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_name_of_a_chain_is_none() {
        for name in ["", "PINHOLE DNAT", "PINHOLE\0", "\"PINHOLE\"", "PINHOLE\\"] {
            assert_eq!(parse(["-j", name].into_iter()), None, "{name:?}");
            assert_eq!(parse(["-g", name].into_iter()), None, "{name:?}");
        }
    }

    #[test]
    fn rules_that_this_program_never_writes_are_not_guessed_at() {
        for foreign in [
            "-i eth0 -p tcp -j ACCEPT",
            "-p tcp -m tcp --sport 25 -j DROP",
            "-m tcp --dport 25 -j DROP",
            "! -s 10.0.0.0/8 -j DROP",
            "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN -j DROP",
            "-o wg+ -j ACCEPT",
            "-m addrtype ! --dst-type MULTICAST -j ACCEPT",
            "-p tcp -m tcp --dport 70:80 -j DNAT --to-destination 10.244.1.9:70-80",
            "-p tcp -m tcp --dport 70:80 -j DNAT --to-destination 10.244.1.9:170-180/60",
            "-p tcp -j DNAT --to-destination 10.244.1.9:170-180/first",
            "-j MASQUERADE",
            "-j REJECT --reject-with icmp-port-unreachable",
            "-j CONNMARK --set-xmark 0x1000/0xffffffff",
            "-j MARK --set-xmark 0x71/0x70",
            "-m conntrack --ctdir ORIGINAL -j ACCEPT",
            "-j PINHOLE-FWD -g PINHOLE-IN extra",
        ] {
            assert_eq!(read(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_range_always_says_which_port_its_first_one_stands_for() {
        let ports = |text: &str| text.parse::<PortRange>().unwrap();
        let to = "10.244.1.9".parse().unwrap();
        let rule = Rule::new(Action::Dnat { to, ports: Some(ports("8000-8010")) })
            .ports(Protocol::Tcp, ports("7000-7010"));
        assert!(rule.to_string().ends_with("--to-destination 10.244.1.9:8000-8010/7000"));
    }
}
