//! The result as tables.

use std::fmt::Write;

use crate::cost::Costs;
use crate::ours;
use crate::ours::SIZES;
use crate::ours::name;
use crate::page;
use crate::rivals;
use crate::rivals::ADDED;
use crate::rivals::EXECUTED;
use crate::traffic;
use crate::traffic::Traffic;

/// Where in [`SIZES`] the budgets are.
const TEN_THOUSAND: usize = 2;

/// Everything that a reader needs to judge the figures or to make them again.
pub(crate) fn markdown(load: &str, ours: &[ours::Measured], rivals: &[rivals::Measured]) -> String {
    let mut text = format!(
        "`make bench-dataplane` on {}, load average {load} at the start (before the benchmark's own load), {} at the end. \
         Times are medians in milliseconds on the clock, those of CPU in brackets.\n\n",
        page::machine(),
        page::load_average(),
    );
    text.push_str(&self::ours(ours));
    text.push_str(&beside(ours, rivals));
    text
}

/// Only our own backends.
pub(crate) fn ours(all: &[ours::Measured]) -> String {
    let mut text = String::from("| mappings programmed from nothing |");
    let row = |text: &mut String, title: &str, cell: &dyn Fn(&ours::Measured) -> String, budget: &str| {
        let cells: Vec<_> = all.iter().map(cell).collect();
        writeln!(text, "| {title} | {} | {budget} |", cells.join(" | ")).unwrap();
    };
    for measured in all {
        write!(text, " {} |", name(measured.firewall)).unwrap();
    }
    text.push_str(" budget |\n|---|---|---|---|---|\n");
    for (index, size) in SIZES.into_iter().enumerate() {
        let budget = if index == TEN_THOUSAND { "100 / 600 / 250" } else { "" };
        row(&mut text, &size.to_string(), &|measured| costs(&measured.cold[index]), budget);
    }
    let change = |measured: &ours::Measured| {
        let (change, median) = (&measured.change, measured.change.wall(500));
        format!("{median:.2}, p99 {:.2} ({:.2})", change.wall(990), change.cpu())
    };
    row(&mut text, "**one change** with 10 000 there", &change, "p99 1 / 40 / 150");
    row(&mut text, "**read back** 10 000", &|measured| costs(&measured.read), "");
    let micros = |costs: &Costs| format!("{:.0} us ({:.0} us)", costs.wall(500) * 1e3, costs.cpu() * 1e3);
    row(&mut text, "**drift probe** with 10 000 there", &|measured| micros(&measured.probe), "50 us CPU");
    let churn = |measured: &ours::Measured| micros(&measured.probe_under_churn);
    row(&mut text, "the same, after others changed a table of theirs", &churn, "");
    for (index, size) in ["10 000", "50 000"].into_iter().enumerate() {
        let memory = |measured: &ours::Measured| {
            let (own, started) = measured.memory[index];
            format!("{own:.0} MB + {started:.0} MB")
        };
        let budget = if index == 0 { "" } else { "64 MB (nftables)" };
        row(&mut text, &format!("**peak memory** at {size}: agent + program it starts"), &memory, budget);
    }
    text.push('\n');
    text
}

/// `12.3 (4.5)`: the median on the clock, and of CPU.
fn costs(costs: &Costs) -> String {
    if costs.is_empty() {
        return "-".to_owned();
    }
    let digits = usize::from(costs.wall(500) < 100.0);
    format!("{:.digits$} ({:.digits$})", costs.wall(500), costs.cpu())
}

fn beside(ours: &[ours::Measured], rivals: &[rivals::Measured]) -> String {
    let mut text = String::from("| one mapping, or many, as others do it |");
    for rival in rivals {
        write!(text, " iptables-{} |", rival.flavor).unwrap();
    }
    text.push_str(" against ours, the same flavour |\n|---|---|---|---|\n");
    let mut row =
        |title: &str, cell: &dyn Fn(&rivals::Measured) -> Costs, of_ours: &dyn Fn(&ours::Measured) -> f64| {
            let cells: Vec<_> = rivals.iter().map(|rival| costs(&cell(rival))).collect();
            let ratio = |(rival, ours): (&rivals::Measured, &ours::Measured)| {
                format!("{:.0}x", cell(rival).wall(500) / of_ours(ours))
            };
            let ratios: Vec<_> = rivals.iter().zip(&ours[1..]).map(ratio).collect();
            writeln!(text, "| {title} | {} | {} |", cells.join(" | "), ratios.join(" / ")).unwrap();
        };
    let cold = |measured: &ours::Measured, size: usize| {
        // Programming 300 costs at most what 1 000 do.
        let index = SIZES.iter().position(|known| size <= *known).unwrap();
        measured.cold[index].wall(500)
    };
    for (index, (size, _)) in EXECUTED.into_iter().enumerate() {
        let title = format!("a program per rule (`-C`, `-A`, 3 rules each): {size} from nothing");
        row(&title, &|rival| rival.executed_cold[index].clone(), &|ours| cold(ours, size));
    }
    row("the same: one more with 10 000 there", &|rival| rival.executed_add.clone(), &|ours| {
        ours.change.wall(500)
    });
    for (index, (size, _)) in ADDED.into_iter().enumerate() {
        let title = format!("CNI portmap: one more with {size} there");
        row(&title, &|rival| rival.portmap_add[index].clone(), &|ours| ours.change.wall(500));
    }
    text.push_str(
        "\n| TCP to the last of | p10 to connect: 1 | 1 000 | 10 000 | 10 000 against 1 | established: 1 | 1 000 | 10 000 | \
         10 000 of 1 |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut traffic = |title: &str, all: &[Traffic]| {
        assert_eq!(all.len(), traffic::SIZES.len());
        let connects: Vec<_> = all.iter().map(|traffic| format!("{:.0} us", traffic.connect(100))).collect();
        let gigabits: Vec<_> =
            all.iter().map(|traffic| format!("{:.1} Gbit/s", traffic.gigabits())).collect();
        writeln!(
            text,
            "| {title} | {} | {:+.0} us | {} | {:.0} % |",
            connects.join(" | "),
            all[2].connect(100) - all[0].connect(100),
            gigabits.join(" | "),
            100.0 * all[2].gigabits() / all[0].gigabits(),
        )
        .unwrap();
    };
    for measured in ours {
        traffic(name(measured.firewall), &measured.traffic);
    }
    for rival in rivals {
        traffic(&format!("a program per rule, iptables-{}", rival.flavor), &rival.executed_traffic);
        traffic(&format!("CNI portmap, iptables-{}", rival.flavor), &rival.portmap_traffic);
    }
    text.push_str("| budget | | | | +5 us nftables, +25 us iptables | | | | 95 % |\n");
    text
}
