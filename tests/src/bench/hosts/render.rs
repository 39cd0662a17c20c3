//! From raw results to `docs/benchmarks-hosts.md`. Pure.

use std::collections::BTreeMap;

use super::{
    super::{
        render::{Circumstances, circumstances, line, other_work},
        results::Sample,
    },
    meter::Requests,
    results::{Failover, HostsResults, Peer, Round, Seen, Stage},
    round::TYPICAL,
};

/// The states that upstream's hosts go through, in order.
const AVAILABLE: &str = "registering inspecting preparing available";
const PROVISIONED: &str = "registering inspecting preparing available provisioning provisioned";
/// The sizes for which there are goals.
const USUAL: u32 = 1000;
const MANY: u32 = 10_000;

/// What is measured beside Muster, as its column says it.
const PEER: &str = "baremetal-operator, without hardware";

/// The page. Every sentence stands on a line of its own.
pub(super) fn page(results: &HostsResults) -> String {
    let mut page = String::from(
        "# Benchmarks: thousands of hosts\n\n\
         Made by `cargo xtask codegen` from `docs/benchmarks/hosts.json`, which the command below measured.\n\
         Times are in seconds, MiB are 2^20 bytes, KiB are 2^10.\n\n",
    );
    page += &circumstances(&Circumstances {
        command: &results.command,
        commit: &results.commit,
        date: &results.date,
        took: Some(results.took),
        computer: &results.computer,
        others: &[other_work(&results.computer)],
        warnings: &results.warnings,
    });
    page += &format!("\n## Goals and results\n\n{}", goals(results));
    page += METHOD;
    page += &results.typical.as_ref().map(typical).unwrap_or_default();
    page += &results.peer.as_ref().map(beside).unwrap_or_default();
    page += BOUND;
    for round in &results.rounds {
        page += &format!("\n## {} hosts\n\n{}", round.hosts, details(round));
    }
    if let Some(round) = &results.typical {
        page += &format!(
            "\n## {} hosts with {} disks each\n\nWhat is stored of available hosts:\n\n{}",
            round.hosts,
            TYPICAL.disks(),
            stored(round)
        );
    }
    if let Some(Peer { round, .. }) = &results.peer {
        page += &format!("\n## {} hosts with {PEER}\n\n{}", round.hosts, details(round));
    }
    if let Some(failover) = &results.failover {
        page += &format!("\n## The leader ends\n\n{}", ending(failover));
    }
    page
}

const METHOD: &str = "\n\
    For Muster, each number of hosts has its own control plane (API server and etcd in one process), one controller with default settings \
    and both roles, and fleets (`cargo xtask lab fleet`) whose steps take no time; each runs as a separate process on this computer.\n\
    Each simulated server has a Redfish BMC and 26 disks, as storage servers do, and an agent that enrols, works over mutual TLS and \
    reports an inventory of more than 20 KiB.\n\
    A quarter of the inventory consists of 90 devices on processor buses, which stand for whatever makes a report large.\n\
    Time runs from the moment when a watcher sees the first host until it has seen the last one become available; during that time, the \
    fleet creates a Secret and a host for each server.\n\
    The time to provisioned begins with the patch that gives the first host an image.\n\
    Requests are those that the API server counts (`apiserver_request_total`), from all clients and with any answer, from the beginning \
    until nothing has been written for 5 s, or for 180 s if that never happens.\n\
    They exclude watches and the user's own requests: a Secret, a host and a patch for each host.\n\
    Memory is `VmHWM` and `VmRSS` of the controller's process; processor time is user and system time from `/proc/PID/stat`.\n\
    Bytes in etcd are the sizes of the objects as JSON, which is how the API server stores custom resources; it stores Secrets and Events \
    as protobuf, which is shorter, so their size is too high where it was not measured as protobuf.\n";

const BOUND: &str = "\n\
    The path to available itself needs twelve requests for each host:\n\n\
    - four writes of the host's status, because a watcher should see each of upstream's four states;\n\
    - its finalizer, before Muster contacts its BMC, and `spec.architecture`, which is unknown before the inspection;\n\
    - label and owner of the BMC's Secret, and the HardwareData, as with upstream;\n\
    - the Enrolment that uses up the machine's token, and its Server;\n\
    - the Server's status, once for the session and once for the inventory: a machine is shown as soon as it calls in, and real hardware \
    takes seconds to report its inventory.\n\n\
    The rest are Events, GETs of the control plane's garbage collector for the owners of new objects, and the leader's Lease.\n\
    Each host has five Events, but some are missing if thousands of hosts come at once: at most 8192 may wait for the API server, and any \
    more are logged and counted (`muster_events_dropped_total`).\n\n\
    The path to provisioned needs six requests: two states, the job, the end of the write, with which the machine leaves, and two \
    Events.\n\
    The edge also reads the host before it hands out the cleaning, and before the write if that follows a second later or more.\n\
    Unless a recent write that the watch has shown proves that the watch is fresh, the edge also reads the Server, and the leader reads \
    the host before it orders cleaning and writing, so that no data are destroyed because of a stale copy.\n\n\
    The processors limit the times: they are busy throughout, mostly with the API server, so a slower computer takes proportionally \
    longer, and times can be compared only within one run.\n\n\
    With ten times as many hosts, each one costs the controller more, because it waits ten to twenty times as long for its turn.\n\
    During that time, its agent renews its poll every four minutes, and the wait is also written to its status.\n\
    Once it is provisioned, its BMC is asked for the power state every minute until the last host is provisioned, each time on a new \
    connection.\n\n\
    The size in etcd comes from the hardware: upstream's API stores it twice, in the host's status and in the HardwareData, and the \
    Server stores the whole inventory of more than 20 KiB.\n\n\
    In the controller's memory, about 13 MiB are the program and its libraries; each host adds some 25 to 30 KiB in 230 pieces, none of \
    which is large.\n\
    Nearly a third of that are the objects with their packed hardware.\n\
    An agent's connection and its held poll take 6 KiB, two thirds of it for keys, certificates and TLS state.\n\
    The rest are the tables for finding machines, metrics, and data about each BMC.\n\
    Memory use is highest while hosts are being provisioned, because the pieces that agents' connections free differ in size from those \
    that hosts then need.\n";

/// Why there are other hosts for one figure.
fn typical(round: &Round) -> String {
    format!(
        "\nThe goal for the bytes in etcd applies to a typical host, and each disk appears in three objects of a host.\n\
         The bytes are therefore measured again with {} available hosts of {} disks, as many as fit into most two-unit servers (`cargo \
         xtask lab fleet --model compute`).\n\
         Their reports are as large as those of the other hosts: 65 more devices replace the disks, so nearly half of a report is \
         devices that no real agent reports.\n",
        round.hosts,
        TYPICAL.disks()
    )
}

/// What the peer is, and what it does not do.
fn beside(peer: &Peer) -> String {
    format!(
        "\nThe last column is baremetal-operator, {version}, with its fixture provisioner, on a control plane of its own, measured in the \
         same way.\n\
         It is built from its Go module, with a newer version of one module whose types it uses.\n\
         It uses no hardware: there are no BMCs, agents or inventories, and no work for them; for each host, etcd contains the same two \
         NICs and two disks.\n\
         It waits for 5 s when it registers a host.\n\
         The fixture keeps one state of inspection, image, power and adoption for all hosts: the first hosts wait for 2 s and 10 s and \
         write the matching status, and the others do neither.\n\
         The last host therefore cannot be provisioned in less than 10 s, and the others are ready sooner than they would be.\n\
         Its webhooks are off and there are no other rules on hosts, whereas Muster's rules are installed.\n\
         It runs with higher limits than its defaults: `{arguments}`.\n",
        version = peer.version,
        arguments = peer.arguments,
    )
}

/// A figure beside its goal.
struct Row {
    figure: String,
    goal: String,
    result: String,
    /// None without a goal.
    reached: Option<bool>,
}

fn row(figure: String, unit: &str, goal: Option<f64>, digits: usize, result: f64) -> Row {
    Row {
        figure,
        goal: goal.map_or_else(String::new, |goal| format!("{goal} {unit}").trim().to_owned()),
        result: format!("{result:.digits$} {unit}").trim().to_owned(),
        reached: goal.map(|goal| result <= goal),
    }
}

/// Goals beside results.
pub(super) fn goals(results: &HostsResults) -> String {
    let mut rows: Vec<Row> = results.rounds.iter().flat_map(of_round).collect();
    rows.extend(results.typical.iter().filter_map(of_typical));
    rows.extend(ratio(&results.rounds));
    rows.extend(results.failover.iter().flat_map(of_failover));
    let mut text = String::from("| figure | goal | result | reached |");
    let mut under = String::from("\n| --- | --- | --- | --- |");
    let peer = results.peer.as_ref().map(|peer| {
        text += &format!(" {PEER} |");
        under += " --- |";
        let rows = of_round(&peer.round).into_iter();
        rows.map(|row| (row.figure, row.result))
            .collect::<BTreeMap<String, String>>()
    });
    text += &format!("{under}\n");
    for row in rows {
        let reached = match row.reached {
            None => "",
            Some(true) => "yes",
            Some(false) => "**no**",
        };
        text += &format!("| {} | {} | {} | {reached} |", row.figure, row.goal, row.result);
        if let Some(peer) = &peer {
            text += &format!(" {} |", peer.get(&row.figure).map_or("", String::as_str));
        }
        text += "\n";
    }
    text
}

fn of_round(round: &Round) -> Vec<Row> {
    let hosts = round.hosts;
    let usual = |goal: f64| (hosts == USUAL).then_some(goal);
    let mut rows = Vec::new();
    if let Some(stage) = &round.available {
        rows.extend(of_available(hosts, stage));
    }
    if let Some(stage) = &round.provisioned {
        let each = per_host(stage.requests(|_| true), hosts);
        let figure = |what: &str| format!("{hosts} hosts, available to provisioned: {what}");
        rows.push(row(figure("time"), "s", None, 1, stage.seconds));
        rows.push(row(figure("API requests a host"), "", Some(8.0), 1, each));
        rows.push(saw(hosts, PROVISIONED, &["provision"], &stage.seen));
        let each = stage.controller_cpu * 1000.0 / f64::from(hosts);
        rows.push(row(figure("controller's CPU a host"), "ms", None, 1, each));
    }
    let peaks = [&round.available, &round.provisioned];
    if let Some(peak) = peaks.into_iter().flatten().map(|stage| stage.peak_kib).max() {
        let goal = if hosts == MANY { Some(300.0) } else { usual(60.0) };
        let figure = format!("{hosts} hosts: controller's memory at its most");
        rows.push(row(figure, "MiB", goal, 0, mib(peak)));
    }
    if !round.stored.is_empty() {
        let figure = format!("{hosts} hosts: bytes in etcd a host");
        rows.push(row(figure, "KiB", None, 1, kib_stored(round)));
    }
    if let Some(idle) = &round.idle {
        let writes: u64 = idle.writes.values().sum();
        let hours = f64::from(hosts) * idle.seconds / 3600.0;
        let figure = format!(
            "{hosts} hosts left alone for {:.0} s: writes an hour and host",
            idle.seconds
        );
        rows.push(row(figure, "", Some(0.0), 2, count(writes) / hours));
    }
    rows
}

fn of_typical(round: &Round) -> Option<Row> {
    let figure = format!(
        "{} available hosts with {} disks each: bytes in etcd a host",
        round.hosts,
        TYPICAL.disks()
    );
    (!round.stored.is_empty()).then(|| row(figure, "KiB", Some(48.0), 1, kib_stored(round)))
}

fn of_available(hosts: u32, stage: &Stage) -> Vec<Row> {
    let goal = (hosts == USUAL).then_some(70.0);
    let figure = |what: &str| format!("{hosts} hosts, created to available: {what}");
    let all = per_host(stage.requests(|_| true), hosts);
    let without = per_host(stage.requests(|resource| resource != "events"), hosts);
    let ms = |seconds: f64| seconds * 1000.0 / f64::from(hosts);
    vec![
        row(figure("time"), "s", goal, 1, stage.seconds),
        row(figure("API requests a host"), "", Some(18.0), 1, all),
        row(
            figure("API requests a host, without Events"),
            "",
            Some(10.0),
            1,
            without,
        ),
        saw(hosts, AVAILABLE, &["register", "inspect"], &stage.seen),
        row(
            figure("controller's CPU a host"),
            "ms",
            None,
            1,
            ms(stage.controller_cpu),
        ),
        row(
            figure("API server's CPU a host"),
            "ms",
            None,
            1,
            ms(stage.api_server_cpu),
        ),
    ]
}

/// Whether the watcher saw every host go the whole `way`, and these operations with begin and end.
fn saw(hosts: u32, way: &str, operations: &[&str], seen: &Seen) -> Row {
    let all = usize::try_from(hosts).unwrap_or(usize::MAX);
    let went = seen.ways.get(way).copied().unwrap_or(0);
    let filled = operations
        .iter()
        .map(|operation| seen.history.get(*operation).copied().unwrap_or(0));
    let filled = filled.min().unwrap_or(0);
    Row {
        figure: format!(
            "{hosts} hosts: a watcher saw `{}`, and operationHistory has {}",
            way.replace(' ', "`, `"),
            operations.join(" and ")
        ),
        goal: "all".to_owned(),
        result: format!("{went} and {filled}"),
        reached: Some(went == all && filled == all),
    }
}

/// The controller's CPU per host of many hosts by that of the usual number.
fn ratio(rounds: &[Round]) -> Vec<Row> {
    type Of = fn(&Round) -> Option<&Stage>;
    let ways: [(&str, Of); 2] = [
        ("created to available", |round| round.available.as_ref()),
        ("available to provisioned", |round| round.provisioned.as_ref()),
    ];
    let rows = ways.into_iter().filter_map(|(way, of)| {
        let each = |hosts: u32| {
            let round = rounds.iter().find(|round| round.hosts == hosts)?;
            Some(of(round)?.controller_cpu / f64::from(hosts))
        };
        let ratio = each(MANY)? / each(USUAL).filter(|each| *each > 0.0)?;
        let figure = format!("{way}: controller's CPU a host, {MANY} against {USUAL} hosts");
        Some(row(figure, "times", Some(1.2), 2, ratio))
    });
    rows.collect()
}

fn of_failover(failover: &Failover) -> Vec<Row> {
    let hosts = failover.hosts;
    let all = usize::try_from(hosts).unwrap_or(usize::MAX);
    let [lease, _] = failover.lease;
    let longest = failover.waits.last().copied().unwrap_or(f64::INFINITY);
    let figure = format!(
        "leader killed, {} of {hosts} hosts busy: the longest that one waited",
        failover.busy
    );
    let mut wait = row(figure, "s", Some(lease + 5.0), 1, longest);
    wait.goal = format!("lease + 5 s = {} s", lease + 5.0);
    // Hosts whose writes end later need no leader in between: that it is there in time is a figure of its own.
    let mut followed = row(
        "leader killed: until another one leads".to_owned(),
        "s",
        Some(lease + 5.0),
        1,
        failover.taken_over,
    );
    followed.goal.clone_from(&wait.goal);
    let lost = Row {
        figure: "leader killed: hosts provisioned, hosts written more than once".to_owned(),
        goal: format!("{hosts}, 0"),
        result: format!("{}, {}", failover.provisioned, failover.rewritten),
        reached: Some(failover.provisioned == all && failover.rewritten == 0),
    };
    let planned = row(
        "leader asked to end (SIGTERM): until another one leads".to_owned(),
        "s",
        Some(2.0),
        1,
        failover.handed_over,
    );
    vec![
        planned,
        followed,
        wait,
        lost,
        saw(
            hosts,
            PROVISIONED,
            &["register", "inspect", "provision"],
            &failover.seen,
        ),
    ]
}

fn per_host(count_of: u64, hosts: u32) -> f64 {
    count(count_of) / f64::from(hosts)
}

/// More than `u32` can count is not measured here.
fn count(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

fn mib(kib: u64) -> f64 {
    count(kib) / 1024.0
}

/// What is stored for each of the round's hosts, in KiB.
fn kib_stored(round: &Round) -> f64 {
    let all = round.stored.values().map(|stored| stored.objects * stored.bytes);
    per_host(all.sum(), round.hosts) / 1024.0
}

fn details(round: &Round) -> String {
    let mut text = String::new();
    if round.fleets > 1 {
        text += &format!(
            "Their servers are simulated by {} processes, which share the limit to open files.\n\n",
            round.fleets
        );
    }
    let stages = [
        ("created to available", &round.available),
        ("available to provisioned", &round.provisioned),
    ];
    text += "| | time | quiet after | CPU: controller | API server | simulated servers | controller's memory, MiB | at its most |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for (name, stage) in &stages {
        let Some(stage) = stage else { continue };
        text += &format!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |\n",
            stage.seconds,
            stage.settled,
            stage.controller_cpu,
            stage.api_server_cpu,
            stage.fleet_cpu,
            mib(stage.resident_kib),
            mib(stage.peak_kib),
        );
    }
    for (name, stage) in &stages {
        let Some(stage) = stage else { continue };
        text += &format!(
            "\nRequests a host, {name}:\n\n{}",
            requests(&stage.requests, round.hosts)
        );
        text += &ways(&stage.seen);
    }
    if !round.stored.is_empty() {
        text += &format!("\nWhat is stored of available hosts:\n\n{}", stored(round));
    }
    if let Some(idle) = &round.idle {
        text += &format!(
            "\nLeft alone for {:.0} s: writes {}, those of the leader's Lease {}; CPU of the controller {:.1} s.\n",
            idle.seconds,
            list(&idle.writes),
            idle.lease_writes,
            idle.controller_cpu
        );
    }
    text
}

fn requests(requests: &Requests, hosts: u32) -> String {
    let mut all: Vec<(&String, &u64)> = requests.iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let mut text = String::from("| request | in all | a host |\n| --- | --- | --- |\n");
    for (key, count) in all {
        text += &format!("| {key} | {count} | {:.2} |\n", per_host(*count, hosts));
    }
    text
}

fn ways(seen: &Seen) -> String {
    let ways: Vec<String> = seen
        .ways
        .iter()
        .map(|(way, hosts)| format!("{hosts} × {}", line(way)))
        .collect();
    format!(
        "\nWays that the watcher saw: {}; the watch began anew {} times; hosts with an error count: {}.\n",
        ways.join("; "),
        seen.restarts,
        seen.errors
    )
}

fn list(requests: &BTreeMap<String, u64>) -> String {
    if requests.is_empty() {
        return "none".to_owned();
    }
    let all: Vec<String> = requests
        .iter()
        .map(|(key, count)| format!("{count} × {key}"))
        .collect();
    all.join(", ")
}

fn stored(round: &Round) -> String {
    let mut text = String::from(
        "| objects | how many | measured | as | bytes of one, on average |\n| --- | --- | --- | --- | --- |\n",
    );
    for (name, stored) in &round.stored {
        let form = if stored.protobuf { "protobuf" } else { "JSON" };
        text += &format!(
            "| {name} | {} | {} | {form} | {} |\n",
            stored.objects, stored.sample, stored.bytes
        );
    }
    if let Some(bytes) = round.etcd_file {
        text += &format!(
            "\netcd's file, with the history of the last minutes and free pages, has {:.0} MiB.\n",
            count(bytes >> 10) / 1024.0
        );
    }
    text
}

fn ending(failover: &Failover) -> String {
    let waits: Sample = failover.waits.iter().copied().collect();
    let of = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    let [lease, retry] = failover.lease;
    let [shortest, longest] = failover.write;
    let told = failover
        .told
        .map_or_else(String::new, |told| format!("; {told} had been ordered to write"));
    format!(
        "An edge and three controllers with the role `control` run, each controller with its own host name, as on different computers, \
         and with a `PROVISIONING_LIMIT` that lets all {} hosts be busy at once; the Lease lasts {lease} s, and a controller tries to get \
         it every {retry} s.\n\
         While all hosts are at rest, the leader gets SIGTERM; another one held the Lease after {:.1} s.\n\
         A write takes {shortest:.0} to {longest:.0} s here.\n\
         Then all hosts get an image; when the first one is provisioned, the leader is killed (SIGKILL){told}.\n\
         Another one held the Lease after {:.1} s; {} writes had ended in between.\n\
         A host's wait lasts from the kill, or from the end of its write if that is later, until it is provisioned: median {}, p99 {}, \
         most {}, of {}.\n\
         A host counts as written more than once if its Server was ordered to write under more than one operation ID.\n{}",
        failover.hosts,
        failover.handed_over,
        failover.taken_over,
        failover.leaderless,
        of(waits.median()),
        of(waits.percentile(99)),
        of(waits.max()),
        waits.len(),
        ways(&failover.seen),
    )
}

#[cfg(test)]
mod tests;
