//! The command line. Every flag has an environment variable, so that a manifest can set either.

use std::{
    collections::BTreeSet,
    net::{AddrParseError, IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use muster_proto::text;

use crate::agents;

/// The Lease that the control role holds unless `--lease-name` names another one.
pub const LEASE: &str = "muster-control";

/// Muster's controller: network boot, enrolment and discovery of bare metal.
#[derive(Debug, Parser)]
#[command(name = "muster-controller", version)]
pub struct Cli {
    /// Without a command, the controller runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options for running the controller.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What to do instead of running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the generated manifests.
    Manifests {
        /// Which manifests to write.
        which: Which,
        /// Directory to write to; it is created if it does not exist.
        #[arg(long)]
        out: PathBuf,
    },
}

/// Which manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// CustomResourceDefinitions.
    Crds,
    /// The minimal RBAC rules of each role.
    Roles,
    /// The documentation pages about host states and flags.
    Pages,
    /// Both `crds` and `roles`, in the directories `crds` and `roles`.
    All,
}

/// What this process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Role {
    /// Serves machines: DHCP, TFTP, HTTP and the agents' API.
    Edge,
    /// Manages hosts: discovers them from what machines report, and inspects and provisions them.
    Control,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Who may read the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Metrics {
    /// Clients whose bearer token the API server allows to `get` the path /metrics, over TLS.
    Authenticated,
    /// Anyone who can reach the address of the probes, which must be a loopback address.
    Plain,
    /// Nobody: metrics are not served.
    Off,
}

/// Options for running the controller.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Roles of this process.
    #[arg(
        long,
        env = "MUSTER_ROLES",
        value_delimiter = ',',
        default_value = "edge,control"
    )]
    pub roles: Vec<Role>,
    /// The namespace of Segments, Servers and the controller's own Secrets.
    #[arg(long, env = "MUSTER_NAMESPACE", default_value = "muster-system", value_parser = namespace)]
    pub namespace: String,
    /// Watch hosts in this one namespace only; without it, in all namespaces.
    #[arg(long, env = "MUSTER_WATCH_NAMESPACE", value_parser = one_namespace)]
    pub watch_namespace: Option<String>,
    /// Kubeconfig file for the API server; without it, the one that kubectl would use (KUBECONFIG, `~/.kube/config`), else the service account.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// TCP port for agents.
    #[arg(long, env = "MUSTER_AGENT_PORT", default_value_t = 9443, value_parser = value_parser!(u16).range(1..))]
    pub agent_port: u16,
    /// Maximum number of agent connections to this replica: one for each machine in its ramdisk, two while it reconnects. Each
    /// needs an open file and some memory, beside some thousands of open files for all else; if the limit of open files is too low for
    /// all of this, a warning at start says so.
    #[arg(long, env = "MUSTER_MAX_AGENTS", default_value_t = 16_384, value_parser = max_agents)]
    pub max_agents: usize,
    /// TCP port for boot files.
    #[arg(long, env = "MUSTER_HTTP_PORT", default_value_t = 8080, value_parser = value_parser!(u16).range(1..))]
    pub http_port: u16,
    /// UDP port for boot files.
    #[arg(long, env = "MUSTER_TFTP_PORT", default_value_t = 69)]
    pub tftp_port: u16,
    /// Directory with the ramdisk releases.
    #[arg(long, env = "MUSTER_BOOT_DIR", default_value = "/usr/share/muster/boot")]
    pub boot_dir: PathBuf,
    /// Directory with undionly.kpxe and snponly.efi.
    #[arg(long, env = "MUSTER_IPXE_DIR", default_value = "/usr/lib/ipxe")]
    pub ipxe_dir: PathBuf,
    /// Directory with additional firmware for the ramdisk, such as /lib/firmware; may be given several times.
    #[arg(long = "firmware-dir", env = "MUSTER_FIRMWARE_DIRS", value_delimiter = ':')]
    pub firmware_dirs: Vec<PathBuf>,
    /// PEM file with additional certificate authorities for the ramdisk; may be given several times.
    #[arg(long = "extra-ca", env = "MUSTER_EXTRA_CAS", value_delimiter = ':')]
    pub extra_cas: Vec<PathBuf>,
    /// PEM file with additional certificate authorities for BMCs; may be given several times. The system's are always trusted.
    #[arg(long = "bmc-ca", env = "MUSTER_BMC_CAS", value_delimiter = ':')]
    pub bmc_cas: Vec<PathBuf>,
    /// Another address or name to include in this edge's certificate, besides those of its Segments; may be given several times. The
    /// `agentEndpoints` of a Segment send agents there.
    #[arg(long, env = "MUSTER_ADVERTISE", value_delimiter = ',', value_parser = endpoint)]
    pub advertise: Vec<String>,
    /// Name of this edge in the status of Segments; without it, its host name.
    #[arg(long, env = "MUSTER_EDGE_NAME", value_parser = computer)]
    pub edge_name: Option<String>,
    /// Name of the Lease by which controllers with the role `control` elect a leader, in their own namespace. The Role in
    /// `deploy/manifests/roles` names the default.
    #[arg(long, env = "MUSTER_LEASE_NAME", default_value = LEASE)]
    pub lease_name: String,
    /// How long after the leader was last heard of nobody else takes over, in seconds.
    #[arg(long, env = "LEASE_DURATION_SECONDS", default_value_t = 15)]
    pub lease_duration_seconds: u64,
    /// The leader stops acting when it has not been able to renew its Lease for this long, in seconds; less than the lease duration.
    /// One request for the Lease may take half of it: with a slower API server, no controller can lead.
    #[arg(long, env = "RENEW_DEADLINE_SECONDS", default_value_t = 10)]
    pub renew_deadline_seconds: u64,
    /// How often the Lease is renewed, in seconds; less than the renew deadline.
    #[arg(long, env = "RETRY_PERIOD_SECONDS", default_value_t = 2)]
    pub retry_period_seconds: u64,
    /// Maximum number of hosts that are inspected, provisioned and deprovisioned at once.
    #[arg(long, env = "PROVISIONING_LIMIT", default_value_t = 20, value_parser = provisioning_limit)]
    pub provisioning_limit: usize,
    /// How many provisionings of a host may fail in a row before it is left as it is until its spec, such as its image, is changed; 0: no limit.
    #[arg(long, env = "MUSTER_MAX_PROVISIONING_RETRIES", default_value_t = 5)]
    pub max_provisioning_retries: u32,
    /// How many hosts are reconciled at once; each mostly waits for the API server.
    #[arg(long, env = "MUSTER_HOST_CONCURRENCY", default_value_t = 16)]
    pub host_concurrency: u16,
    /// Address on which /healthz and /readyz are served, without TLS; port 0 picks a free port and prints it.
    #[arg(long, env = "MUSTER_ADMIN_LISTEN", default_value = "127.0.0.1:9090", value_parser = socket)]
    pub admin_listen: SocketAddr,
    /// Who may read /metrics.
    #[arg(long, env = "MUSTER_METRICS", value_enum, default_value = "authenticated")]
    pub metrics: Metrics,
    /// Address on which /metrics is served to authenticated clients, over TLS.
    #[arg(long, env = "MUSTER_METRICS_LISTEN", default_value = "[::]:8443", value_parser = socket)]
    pub metrics_listen: SocketAddr,
    /// PEM file with the certificate for that; without it, one is issued by the controller's own authority (Secret muster-ca).
    #[arg(long, env = "MUSTER_METRICS_CERT", requires = "metrics_key")]
    pub metrics_cert: Option<PathBuf>,
    /// PEM file with the key of that certificate.
    #[arg(long, env = "MUSTER_METRICS_KEY", requires = "metrics_cert")]
    pub metrics_key: Option<PathBuf>,
    /// Format of log lines; what is logged is set by MUSTER_LOG, such as `info,muster_controller=debug`.
    #[arg(long, env = "MUSTER_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

impl RunArgs {
    /// What else stands in this edge's certificate.
    pub fn advertised(&self) -> Vec<String> {
        let all = self.advertise.iter();
        all.filter(|endpoint| !endpoint.is_empty()).cloned().collect()
    }

    /// What this edge is called.
    pub fn edge_name(&self) -> String {
        self.edge_name
            .clone()
            .filter(|name| !name.is_empty())
            .or_else(|| sysinfo::System::host_name().ok())
            .unwrap_or_default()
    }

    /// The namespace of hosts; none: all. An empty one says nothing, as with baremetal-operator.
    pub fn hosts(&self) -> Option<String> {
        self.watch_namespace.clone().filter(|name| !name.is_empty())
    }

    /// The roles, each once.
    pub fn roles(&self) -> BTreeSet<Role> {
        self.roles.iter().copied().collect()
    }

    /// What is wrong with values that are each right by itself.
    pub fn check(&self) -> Result<(), String> {
        let authenticated = self.metrics == Metrics::Authenticated;
        if !authenticated && (self.metrics_cert.is_some() || self.metrics_key.is_some()) {
            return Err(
                "--metrics-cert and --metrics-key have no effect without `--metrics authenticated`"
                    .to_owned(),
            );
        }
        let admin = ("--admin-listen", self.admin_listen);
        let metrics = authenticated.then_some(("--metrics-listen", self.metrics_listen));
        let is_every = |address: IpAddr| address.to_canonical().is_unspecified();
        if self.roles().contains(&Role::Edge) {
            if self.http_port == self.agent_port {
                return Err(format!(
                    "--http-port and --agent-port are both {}: they must differ",
                    self.http_port
                ));
            }
            // On the addresses of Segments, which this one has among its own.
            for (flag, listen) in [Some(admin), metrics].into_iter().flatten() {
                for (other, port) in [("--http-port", self.http_port), ("--agent-port", self.agent_port)] {
                    if listen.port() == port && is_every(listen.ip()) {
                        return Err(format!(
                            "{flag} {listen} takes the port of {other} on every address: the ports must differ"
                        ));
                    }
                }
            }
        }
        if let Some((_, metrics)) = metrics {
            let (one, other) = (self.admin_listen.ip(), metrics.ip());
            let meet = one == other || is_every(one) || is_every(other);
            if meet && metrics.port() == self.admin_listen.port() && metrics.port() != 0 {
                return Err(format!(
                    "--admin-listen {} and --metrics-listen {metrics} are the same port: they must differ",
                    self.admin_listen
                ));
            }
        }
        Ok(())
    }
}

/// Reads the name of a namespace.
fn namespace(text: &str) -> Result<String, String> {
    let is_label = text::is_dns_subdomain(text) && text.len() <= 63 && !text.contains('.');
    is_label.then(|| text.to_owned()).ok_or_else(|| {
        "not a valid namespace name: it must be 1 to 63 of a-z, 0-9 and `-`, and begin and end with a letter or a digit"
            .to_owned()
    })
}

/// Reads a number that is not 0; `none` says what 0 would mean.
fn some(text: &str, none: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err(none.to_owned()),
        number => number.map_err(|error| error.to_string()),
    }
}

fn provisioning_limit(text: &str) -> Result<usize, String> {
    some(
        text,
        "no host would ever be inspected or provisioned; PROVISIONING_LIMIT must be 1 or more",
    )
}

fn max_agents(text: &str) -> Result<usize, String> {
    some(
        text,
        "no machine could ever connect; MUSTER_MAX_AGENTS must be 1 or more",
    )
}

/// Reads what agents may dial: a host, with or without `https://` and a port. An empty one is none: templated manifests write such.
fn endpoint(text: &str) -> Result<String, String> {
    let is_name = |name: &str| text::is_dns_subdomain(&name.to_ascii_lowercase());
    let is_host = text.is_empty() || agents::dialled(text).map_or_else(is_name, |_| true);
    is_host
        .then(|| text.to_owned())
        .ok_or_else(|| "neither an IP address nor a DNS name".to_owned())
}

/// Reads what a computer may be called; an empty name is none.
fn computer(text: &str) -> Result<String, String> {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_name = text.len() <= 253 && text.bytes().all(inside);
    is_name
        .then(|| text.to_owned())
        .ok_or_else(|| "it must be 1 to 253 letters, digits, `.`, `-` and `_`".to_owned())
}

/// Reads the name of one namespace, or none; baremetal-operator takes a list, which must not pass for a namespace that nobody has.
fn one_namespace(text: &str) -> Result<String, String> {
    match text.trim() {
        list if list.contains(',') => {
            Err("a list is not supported: name one namespace, or none for all".to_owned())
        }
        "" => Ok(String::new()),
        name => namespace(name),
    }
}

/// Reads `address:port`. An IPv6 address needs no brackets: a manifest that puts a node's address before the port cannot know which it is.
fn socket(text: &str) -> Result<SocketAddr, AddrParseError> {
    text.parse().or_else(|error: AddrParseError| {
        let (address, port) = text.rsplit_once(':').ok_or_else(|| error.clone())?;
        let port = port.parse().map_err(|_| error)?;
        Ok(SocketAddr::new(address.parse()?, port))
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_empty_namespace_of_hosts_is_none() {
        let hosts = |namespace: &str| {
            let args = ["muster-controller", "--watch-namespace", namespace];
            Cli::try_parse_from(args).unwrap().run.hosts()
        };
        assert_eq!(hosts("metal").as_deref(), Some("metal"));
        assert_eq!(hosts(""), None);
    }

    #[test]
    fn an_empty_name_of_an_edge_or_address_in_its_certificate_counts_as_not_set() {
        let unset = parse(&[]).unwrap();
        // An empty environment variable reaches the same parsers.
        let empty = parse(&["--edge-name", "", "--advertise", ""]).unwrap();
        assert_eq!(empty.edge_name(), unset.edge_name());
        assert_eq!(empty.advertised(), unset.advertised());
        let one = parse(&["--advertise", "192.0.2.1,"]).unwrap();
        assert_eq!(one.advertised(), ["192.0.2.1"]);
    }

    #[test]
    fn metrics_are_for_those_who_are_authenticated_unless_somebody_says_otherwise() {
        let metrics = |args: &[&str]| {
            let args = ["muster-controller"].iter().chain(args);
            Cli::try_parse_from(args).unwrap().run.metrics
        };
        assert_eq!(metrics(&[]), Metrics::Authenticated);
        assert_eq!(metrics(&["--metrics", "plain"]), Metrics::Plain);
    }

    #[test]
    fn addresses_to_listen_on_are_of_either_family_with_or_without_brackets() {
        let listens = |text: &str| socket(text).map(|address| address.to_string()).ok();
        assert_eq!(listens("192.0.2.1:8443").as_deref(), Some("192.0.2.1:8443"));
        assert_eq!(
            listens("[2001:db8::5]:8443").as_deref(),
            Some("[2001:db8::5]:8443")
        );
        assert_eq!(listens("2001:db8::5:8443").as_deref(), Some("[2001:db8::5]:8443"));
        for wrong in ["", "8443", ":8443", "192.0.2.1", "192.0.2.1:http", "name:8443"] {
            assert_eq!(listens(wrong), None, "{wrong}");
        }
    }

    fn parse(args: &[&str]) -> Result<RunArgs, String> {
        let args = ["muster-controller"].iter().chain(args);
        let cli = Cli::try_parse_from(args).map_err(|error| error.to_string())?;
        cli.run.check().map(|()| cli.run)
    }

    #[test]
    fn values_with_which_nothing_could_work_are_refused_and_named() {
        let wrong: &[(&[&str], &str)] = &[
            (&["--provisioning-limit", "0"], "PROVISIONING_LIMIT"),
            (&["--max-agents", "0"], "MUSTER_MAX_AGENTS"),
            (&["--max-agents", "many"], "--max-agents"),
            (&["--namespace", ""], "--namespace"),
            (&["--namespace", "Muster"], "--namespace"),
            (&["--namespace", "a.b"], "--namespace"),
            (&["--watch-namespace", "metal-"], "--watch-namespace"),
            (&["--watch-namespace", "a,b"], "list"),
            (&["--http-port", "0"], "--http-port"),
            (&["--agent-port", "0"], "--agent-port"),
            (&["--http-port", "9443"], "--agent-port"),
            (&["--agent-port", "8443"], "--metrics-listen"),
            (
                &["--http-port", "9090", "--admin-listen", "0.0.0.0:9090"],
                "--admin-listen",
            ),
            (&["--admin-listen", "[::]:8443"], "--metrics-listen"),
            (&["--advertise", "bad name!"], "--advertise"),
            (&["--edge-name", "bad name!"], "--edge-name"),
            (&["--advertise", "2001:db8::1::2"], "--advertise"),
            (
                &["--metrics", "off", "--metrics-cert", "a", "--metrics-key", "b"],
                "--metrics-cert",
            ),
        ];
        for (args, named) in wrong {
            let error = parse(args).err();
            let error = error.unwrap_or_else(|| panic!("{args:?} is taken"));
            assert!(error.contains(named), "{args:?}: {error}");
        }
    }

    #[test]
    fn values_that_go_together_are_taken() {
        let right: &[&[&str]] = &[
            &[],
            &["--provisioning-limit", "1", "--max-agents", "1"],
            &["--namespace", "muster-2", "--watch-namespace", " metal "],
            &["--agent-port", "9090"],
            &["--roles", "control", "--http-port", "8443"],
            &["--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"],
            &["--metrics", "off", "--agent-port", "8443"],
            &["--metrics-cert", "a", "--metrics-key", "b"],
            &[
                "--advertise",
                "192.0.2.1,edge.Example,https://edge-1.example:9443",
            ],
            &[
                "--advertise",
                "2001:db8::1,[2001:db8::1],[2001:db8::1]:9443,https://[2001:db8::1]:9443",
            ],
            &["--edge-name", "Node_1.example"],
        ];
        for args in right {
            assert_eq!(parse(args).err(), None, "{args:?}");
        }
    }

    #[test]
    fn roles_are_split_at_commas() {
        let cli = Cli::try_parse_from(["muster-controller", "--roles", "edge"]).unwrap();
        assert_eq!(cli.run.roles(), [Role::Edge].into());
        let cli = Cli::try_parse_from(["muster-controller", "--roles", "edge,control,edge"]).unwrap();
        assert_eq!(cli.run.roles(), [Role::Edge, Role::Control].into());
        assert!(Cli::try_parse_from(["muster-controller", "--roles", "all"]).is_err());
    }
}
