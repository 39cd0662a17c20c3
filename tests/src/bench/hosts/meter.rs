//! What the API server counts of itself, and how large the objects in it are.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use hyper::http::Request;
use kube::Client;
use serde_json::Value;

use super::results::Stored;

/// How many requests there were, by `VERB resource/subresource`.
pub(super) type Requests = BTreeMap<String, u64>;

/// Groups that only whoever installs something writes to.
const INSTALLED: [&str; 3] = [
    "apiextensions.k8s.io",
    "admissionregistration.k8s.io",
    "apiregistration.k8s.io",
];
/// Objects of which the size is taken: a page of a list.
const SAMPLE: u32 = 500;
/// Where each has to be asked for by itself.
const SAMPLE_ALONE: u32 = 50;

/// A reading of the API server's metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// Requests since it started, without watches.
    pub(super) requests: Requests,
    /// The size of etcd's file, in bytes.
    pub(super) etcd_file: Option<u64>,
}

/// Reads them.
pub(super) async fn read(client: &Client) -> Result<Reading> {
    let text = client
        .request_text(get("/metrics", "text/plain")?)
        .await
        .context("read the API server's metrics")?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Reading {
    let mut reading = Reading::default();
    for line in text.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        if series.starts_with("apiserver_storage_size_bytes") {
            reading.etcd_file = whole(value);
        }
        let Some(labels) = series.strip_prefix("apiserver_request_total") else {
            continue;
        };
        let of = |name: &str| label(labels, name).unwrap_or_default();
        let (verb, resource, part) = (of("verb"), of("resource"), of("subresource"));
        // Health, discovery and metrics name no resource.
        if verb == "WATCH" || resource.is_empty() || INSTALLED.contains(&of("group")) {
            continue;
        }
        let slash = if part.is_empty() { "" } else { "/" };
        *reading
            .requests
            .entry(format!("{verb} {resource}{slash}{part}"))
            .or_default() += whole(value).unwrap_or(0);
    }
    reading
}

/// The value of a label in `{one="a",other="b"}`.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels
        .trim_matches(['{', '}'])
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"'))
}

/// A count, which the format writes as a floating-point number, such as `1.2345e+06`.
fn whole(value: &str) -> Option<u64> {
    let number: f64 = value.parse().ok()?;
    format!("{number:.0}").parse().ok()
}

/// What was asked between two readings.
pub(super) fn since(before: &Requests, after: &Requests) -> Requests {
    let asked = after.iter().map(|(key, count)| {
        let had = before.get(key).copied().unwrap_or(0);
        (key.clone(), count.saturating_sub(had))
    });
    asked.filter(|(_, count)| *count > 0).collect()
}

/// Those that change something.
pub(super) fn writes(requests: &Requests) -> Requests {
    let reads = ["GET ", "LIST "];
    let writes = requests
        .iter()
        .filter(|(key, _)| !reads.iter().any(|read| key.starts_with(read)));
    writes.map(|(key, count)| (key.clone(), *count)).collect()
}

/// True for what keeps leaders, whether or not there are hosts.
pub(super) fn is_lease(key: &str) -> bool {
    key.ends_with(" leases")
}

/// How the API server stores objects of a kind.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// Kinds that were defined by somebody, as JSON.
    Json,
    /// Kubernetes' own, as protobuf.
    Protobuf,
}

/// What of `path`, such as `/api/v1/namespaces/a/secrets`, is stored: how many objects, and the size of the first of them. None if
/// there are none, or the kind is not installed.
pub(super) async fn stored(client: &Client, path: &str, form: Form) -> Result<Option<Stored>> {
    let sample = match form {
        Form::Json => SAMPLE,
        Form::Protobuf => SAMPLE_ALONE,
    };
    let asked = client.request(get(&format!("{path}?limit={sample}"), "application/json")?);
    let list: Value = match asked.await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        asked => asked.with_context(|| format!("list {path}"))?,
    };
    let mut stored = measure(&list);
    if stored.objects == 0 {
        return Ok(None);
    }
    if let Form::Protobuf = form {
        let mut bytes = 0;
        for name in names(&list) {
            bytes += protobuf(client, &format!("{path}/{name}")).await?;
        }
        stored.bytes = bytes.checked_div(stored.sample).unwrap_or(0);
        stored.protobuf = true;
    }
    Ok(Some(stored))
}

/// The size of one object as protobuf: the API server answers with what it stores.
async fn protobuf(client: &Client, path: &str) -> Result<u64> {
    let request = get(path, "application/vnd.kubernetes.protobuf")?;
    let request = request.map(kube::client::Body::from);
    let answer = client
        .send(request)
        .await
        .with_context(|| format!("get {path}"))?;
    ensure!(answer.status().is_success(), "get {path}: {}", answer.status());
    let body = answer.into_body().collect().await;
    let bytes = body.with_context(|| format!("read {path}"))?.to_bytes();
    u64::try_from(bytes.len()).context("a size")
}

fn get(path: &str, accept: &str) -> Result<Request<Vec<u8>>> {
    let request = Request::get(path).header("accept", accept);
    request.body(Vec::new()).context("make a request")
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn names(list: &Value) -> impl Iterator<Item = &str> {
    let names = items(list).iter().map(|item| &item["metadata"]["name"]);
    names.filter_map(Value::as_str)
}

fn measure(list: &Value) -> Stored {
    let items = items(list);
    let sample = u64::try_from(items.len()).unwrap_or(u64::MAX);
    let bytes: usize = items.iter().map(|item| item.to_string().len()).sum();
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    Stored {
        objects: sample + list["metadata"]["remainingItemCount"].as_u64().unwrap_or(0),
        sample,
        protobuf: false,
        bytes: bytes.checked_div(sample).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_are_counted_by_verb_and_resource_and_watches_are_not() {
        let text = "# TYPE apiserver_request_total counter\n\
            apiserver_request_total{code=\"200\",group=\"metal3.io\",resource=\"baremetalhosts\",subresource=\"status\",verb=\"PATCH\"} 1e+06\n\
            apiserver_request_total{code=\"409\",group=\"metal3.io\",resource=\"baremetalhosts\",subresource=\"status\",verb=\"PATCH\"} 2\n\
            apiserver_request_total{code=\"200\",group=\"\",resource=\"secrets\",subresource=\"\",verb=\"GET\"} 3\n\
            apiserver_request_total{code=\"200\",group=\"\",resource=\"secrets\",subresource=\"\",verb=\"WATCH\"} 4\n\
            apiserver_request_total{code=\"200\",group=\"\",resource=\"\",subresource=\"/readyz\",verb=\"GET\"} 5\n\
            apiserver_request_total{code=\"200\",group=\"apiextensions.k8s.io\",resource=\"customresourcedefinitions\",verb=\"APPLY\"} 6\n\
            apiserver_request_total_of_another{verb=\"GET\"} 7\n\
            apiserver_storage_size_bytes{storage_cluster_id=\"etcd-0\"} 4.2e+06\n";
        let reading = parse(text);
        let expected = [("PATCH baremetalhosts/status", 1_000_002), ("GET secrets", 3)];
        let expected: Requests = expected.map(|(key, count)| (key.to_owned(), count)).into();
        assert_eq!(reading.requests, expected);
        assert_eq!(reading.etcd_file, Some(4_200_000));
        let later = [("GET secrets", 5), ("PUT leases", 1)].map(|(key, count)| (key.to_owned(), count));
        let asked = since(&expected, &later.into());
        let expected = [("GET secrets", 2), ("PUT leases", 1)];
        assert_eq!(asked, expected.map(|(key, count)| (key.to_owned(), count)).into());
        assert_eq!(writes(&asked).into_keys().collect::<Vec<_>>(), ["PUT leases"]);
        assert!(is_lease("PUT leases"));
    }

    #[test]
    fn what_is_stored_is_more_than_a_page_of_it() {
        let list = json!({"metadata": {"remainingItemCount": 8}, "items": [{"a": 1}, {"b": "cc"}]});
        let stored = measure(&list);
        assert_eq!((stored.objects, stored.sample, stored.bytes), (10, 2, 8));
        assert_eq!(measure(&json!({"metadata": {}, "items": []})), Stored::default());
    }
}
