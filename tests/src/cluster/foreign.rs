//! How a kubeconfig is changed for use inside a lab network, where the API server is reached through a forwarder on loopback.

use anyhow::{Context, Result, bail};
use kube::config::{Cluster, Kubeconfig};
use serde_json::{Value, json};

/// Host and port of an API server's URL.
pub(super) fn address(url: &hyper::Uri) -> Result<(String, u16)> {
    let host = url.host().context("the API server's URL names no host")?;
    let port = url.port_u16().unwrap_or(match url.scheme_str() {
        Some("http") => 80,
        _ => 443,
    });
    Ok((host.to_owned(), port))
}

/// The lab reaches an API server by its address alone.
pub(super) fn has_no_proxy(config: &Kubeconfig) -> Result<()> {
    if current(config)?.proxy_url.is_some() {
        bail!("its cluster is behind a proxy (proxy-url), through which the lab cannot reach it");
    }
    Ok(())
}

/// The current context's cluster entry.
fn current(config: &Kubeconfig) -> Result<&Cluster> {
    let current = config.current_context.as_deref().context("no current context")?;
    let context = config
        .contexts
        .iter()
        .find(|named| named.name == current)
        .and_then(|named| named.context.as_ref())
        .with_context(|| format!("no context {current}"))?;
    let clusters = &mut config.clusters.iter();
    clusters
        .find(|named| named.name == context.cluster)
        .and_then(|named| named.cluster.as_ref())
        .with_context(|| format!("no cluster {}", context.cluster))
}

/// The same, pointed at `port` of loopback; the server still proves its own name.
pub(super) fn inside(config: &Kubeconfig, port: u16) -> Result<Value> {
    let cluster = current(config)?;
    let url: hyper::Uri = cluster
        .server
        .as_deref()
        .context("the cluster names no server")?
        .parse()
        .context("the server's URL")?;
    let mut entry = serde_json::to_value(cluster).context("write a kubeconfig")?;
    let scheme = url.scheme_str().unwrap_or("https");
    entry["server"] = json!(format!(
        "{scheme}://127.0.0.1:{port}{}",
        url.path().trim_end_matches('/')
    ));
    let (host, _) = address(&url)?;
    if cluster.tls_server_name.is_none() && scheme == "https" && host != "127.0.0.1" {
        entry["tls-server-name"] = json!(host.trim_matches(['[', ']']));
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(server: &str) -> Kubeconfig {
        Kubeconfig::from_yaml(&format!(
            "{{current-context: a, contexts: [{{name: a, context: {{cluster: c, user: u}}}}], \
             clusters: [{{name: c, cluster: {{server: '{server}', certificate-authority-data: AAAA}}}}]}}"
        ))
        .unwrap()
    }

    #[test]
    fn server_keeps_its_name_and_path() {
        let entry = inside(&config("https://k8s.example/rancher/"), 443).unwrap();
        assert_eq!(entry["server"], "https://127.0.0.1:443/rancher");
        assert_eq!(entry["tls-server-name"], "k8s.example");
        assert_eq!(entry["certificate-authority-data"], "AAAA");
    }

    #[test]
    fn local_server_is_left_as_it_is() {
        let entry = inside(&config("https://127.0.0.1:6443"), 6443).unwrap();
        assert_eq!(entry["server"], "https://127.0.0.1:6443");
        assert_eq!(entry.get("tls-server-name"), None);
    }

    #[test]
    fn ports_follow_the_scheme() {
        for (url, expected) in [
            ("https://h", ("h".to_owned(), 443)),
            ("http://h:8", ("h".to_owned(), 8)),
            ("http://h", ("h".to_owned(), 80)),
        ] {
            assert_eq!(address(&url.parse().unwrap()).unwrap(), expected);
        }
    }
}
