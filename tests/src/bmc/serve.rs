//! The service: routes, sessions, faults.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::{
    HeaderMap, Method, Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use super::{
    Auth, BootQuirk, Change, Etags, Fault, REMEMBERED, Seen, Shared, State,
    resources::{self, SESSIONS, SYSTEMS},
    state::{Machine, Refusal},
};

type Body = BoxBody<Bytes, io::Error>;

/// The most bytes of a request's content.
const MOST: usize = 64 << 10;

/// An answer before faults.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Option<Value>,
}

impl Answer {
    fn of(status: u16, body: Value) -> Answer {
        Answer {
            status,
            headers: Vec::new(),
            body: Some(body),
        }
    }

    fn empty() -> Answer {
        Answer {
            status: 204,
            headers: Vec::new(),
            body: None,
        }
    }

    fn refused((status, id, message): Refusal) -> Answer {
        Answer::of(status, resources::error(id, message))
    }

    fn missing() -> Answer {
        Answer::refused((404, "ResourceMissingAtURI", "There is no such resource."))
    }

    fn with(mut self, name: &'static str, value: String) -> Answer {
        self.headers.push((name, value));
        self
    }

    fn response(self) -> Response<Body> {
        let text = self.body.map(|body| body.to_string()).unwrap_or_default();
        build(self.status, self.headers, full(text))
    }
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed()
}

fn build(status: u16, headers: Vec<(&'static str, String)>, body: Body) -> Response<Body> {
    let mut response = Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .header("odata-version", "4.0");
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response
        .body(body)
        .expect("statuses and headers are made here or by a test")
}

/// Serves until it is dropped; connections end with it.
pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let tls = shared.options.tls.clone().map(TlsAcceptor::from);
    let mut connections = JoinSet::new();
    loop {
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => (stream, from.ip()),
                // Out of descriptors, for instance: somebody else's connection has to end first.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        connections.spawn(async move {
            // How a connection ends is the client's business.
            match tls {
                None => speak(TokioIo::new(stream), from, shared).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => speak(TokioIo::new(stream), from, shared).await,
                    Err(_) => Ok(()),
                },
            }
        });
    }
}

async fn speak<T>(io: TokioIo<T>, from: IpAddr, shared: Arc<Shared>) -> hyper::Result<()>
where
    TokioIo<T>: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    let requests = AtomicU32::new(0);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        let is_first = requests.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            shared.enter();
            // Also left if the client goes away in the middle.
            let _left = Left(&shared);
            answer(&shared, from, is_first, request).await
        }
    });
    http1::Builder::new().serve_connection(io, service).await
}

struct Left<'a>(&'a Shared);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.state().busy.0 -= 1;
    }
}

impl Shared {
    fn enter(&self) {
        let busy = &mut self.state().busy;
        busy.0 += 1;
        busy.1 = busy.1.max(busy.0);
    }
}

/// The connection ends without a word.
fn silence() -> io::Error {
    io::Error::other("the test wants no answer")
}

async fn answer(
    shared: &Arc<Shared>,
    from: IpAddr,
    is_first: bool,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let content = Limited::new(body, MOST).collect().await.map_err(|_| silence())?;
    let body: Value = serde_json::from_slice(&content.to_bytes()).unwrap_or_default();
    let path = parts
        .uri
        .path_and_query()
        .map(ToString::to_string)
        .unwrap_or_default();
    let method = parts.method;
    let headers = parts.headers;
    let fault = match shared.options.remember {
        true => shared.state().note(from, &method, &path, &headers, &body),
        false => shared.state().fault(&method, &path),
    };
    match fault {
        None => {}
        Some(Fault::OnePerConnection) if is_first => {}
        Some(Fault::Refuse | Fault::OnePerConnection) => return Err(silence()),
        Some(Fault::Hang) => return std::future::pending().await,
        Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
        Some(Fault::Garbage) => return Ok(build(200, Vec::new(), full("<html>Hello".to_owned()))),
        Some(Fault::Long(bytes)) => {
            return Ok(build(
                200,
                Vec::new(),
                full(format!("[\"{}\"]", "x".repeat(bytes))),
            ));
        }
        Some(Fault::Unavailable(seconds)) => {
            let busy = Answer::refused((
                503,
                "ServiceTemporarilyUnavailable",
                "The service is temporarily unavailable.",
            ));
            return Ok(busy.with("retry-after", seconds.to_string()).response());
        }
        Some(Fault::Status(status, id)) => {
            return Ok(Answer::refused((status, id, "It is so because the test says so.")).response());
        }
        Some(Fault::Mismatch) => {
            return Ok(Answer::refused((412, "PreconditionFailed", "The ETag did not match.")).response());
        }
        Some(Fault::Redirect(to)) => {
            let status = if method == Method::GET { 301 } else { 308 };
            return Ok(build(status, vec![("location", to)], full(String::new())));
        }
        Some(Fault::Echo) => {
            let said = format!("You said {headers:?} and {body}.");
            return Ok(Answer::of(400, resources::error("GeneralError", &said)).response());
        }
        Some(fault @ (Fault::Lie(_) | Fault::NothingHappens)) => {
            return Ok(route(shared, &method, &path, &headers, &body, Some(&fault)).response());
        }
        Some(Fault::DoneButSilent) => {
            route(shared, &method, &path, &headers, &body, None);
            return std::future::pending().await;
        }
        Some(Fault::DoneBut(status)) => {
            route(shared, &method, &path, &headers, &body, None);
            return Ok(build(status, Vec::new(), full("<html>Gateway</html>".to_owned())));
        }
        Some(Fault::Truncated) => {
            let whole = route(shared, &method, &path, &headers, &body, None);
            let status = whole.status;
            let text = whole.body.map(|body| body.to_string()).unwrap_or_default();
            let half = Bytes::from(text[..text.len() / 2].to_owned());
            let end = async {
                // What was sent arrives first.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(silence())
            };
            let parts = stream::iter([Ok(Frame::data(half))]).chain(stream::once(end));
            let length = vec![("content-length", text.len().to_string())];
            return Ok(build(status, length, BodyExt::boxed(StreamBody::new(parts))));
        }
    }
    Ok(route(shared, &method, &path, &headers, &body, None).response())
}

impl State {
    /// Remembers the request; the fault that is meant for it.
    fn note(
        &mut self,
        from: IpAddr,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &Value,
    ) -> Option<Fault> {
        if self.seen.len() == REMEMBERED {
            self.seen.pop_front();
        }
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        self.seen.push_back(Seen {
            method: method.to_string(),
            path: path.to_owned(),
            from,
            auth: match (
                headers.contains_key("x-auth-token"),
                headers.contains_key("authorization"),
            ) {
                (true, _) => Auth::Token,
                (false, true) => Auth::Basic,
                (false, false) => Auth::None,
            },
            if_match: text("if-match"),
            body: body.clone(),
        });
        self.fault(method, path)
    }

    /// The fault that is meant for a request.
    fn fault(&mut self, method: &Method, path: &str) -> Option<Fault> {
        let rule = self
            .rules
            .iter_mut()
            .find(|rule| rule.meets(method.as_str(), path))?;
        if let Some(times) = &mut rule.times {
            *times -= 1;
        }
        Some(rule.fault.clone())
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(token) = text("x-auth-token") {
            return self.sessions.contains_key(token);
        }
        let (user, password) = &self.user;
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
        text("authorization") == Some(basic.as_str())
    }
}

/// True if the boot override is written to the settings, and nowhere else.
fn in_settings(options: &super::Options) -> bool {
    matches!(
        options.boot,
        BootQuirk::Settings | BootQuirk::StaleSettings | BootQuirk::EmptySettings
    )
}

const UNKNOWN: Refusal = (
    401,
    "NoValidSession",
    "There is no valid session established with the implementation.",
);
const NO_METHOD: Refusal = (
    405,
    "OperationNotAllowed",
    "The HTTP method is not allowed on this resource.",
);

fn route(
    shared: &Arc<Shared>,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    body: &Value,
    fault: Option<&Fault>,
) -> Answer {
    let options = &shared.options;
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let path = path.trim_end_matches('/');
    match (method.as_str(), path) {
        ("GET", "/redfish/v1") => return Answer::of(200, resources::root(options)),
        ("POST", SESSIONS) if options.sessions.is_some() => return log_in(shared, body),
        _ => {}
    }
    let mut state = shared.state();
    if !state.knows(headers) {
        return Answer::refused(UNKNOWN);
    }
    if path == SYSTEMS {
        let mut names: Vec<&String> = state.machines.keys().collect();
        names.sort();
        let members: Vec<Value> = names
            .iter()
            .map(|name| resources::link(&format!("{SYSTEMS}/{name}")))
            .collect();
        return Answer::of(
            200,
            resources::collection(SYSTEMS, "ComputerSystemCollection", &members),
        );
    }
    if let Some(number) = path
        .strip_prefix(SESSIONS)
        .and_then(|rest| rest.strip_prefix('/'))
    {
        return log_out(&mut state, method, number);
    }
    let Some(rest) = path.strip_prefix(SYSTEMS).and_then(|rest| rest.strip_prefix('/')) else {
        return Answer::missing();
    };
    let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let Some(machine) = state.machines.get_mut(name) else {
        return Answer::missing();
    };
    let own = format!("{SYSTEMS}/{name}");
    match (method.as_str(), rest) {
        ("GET", "") => {
            let events = machine.read();
            let lie = fault.and_then(|fault| {
                if let Fault::Lie(word) = fault {
                    Some(*word)
                } else {
                    None
                }
            });
            let answer = Answer::of(200, resources::system(machine, options, lie));
            let etag = resources::etag(machine, options);
            drop(state);
            shared.tell(events);
            match etag {
                Some(etag) => answer.with("etag", etag),
                None => answer,
            }
        }
        ("PATCH", "") if in_settings(options) => Answer::refused(NO_METHOD),
        ("PATCH", "") => patch(machine, shared, headers, body),
        ("GET", "Settings") if resources::has_settings(options) => {
            Answer::of(200, resources::settings(machine, options))
        }
        ("PATCH", "Settings") if in_settings(options) => patch(machine, shared, headers, body),
        ("PATCH", "Settings") if resources::has_settings(options) => Answer::refused((
            400,
            "PropertyNotWritable",
            "BootSourceOverrideEnabled is a read only property.",
        )),
        ("GET", "ResetActionInfo") => Answer::of(200, resources::action_info(&own, options)),
        ("GET", "EthernetInterfaces") => {
            let nic = resources::nic(machine);
            let link = resources::link(&format!("{own}/EthernetInterfaces/1"));
            let member = if options.expand && query == "$expand=." {
                nic
            } else {
                link
            };
            Answer::of(
                200,
                resources::collection(&format!("{own}/{rest}"), "EthernetInterfaceCollection", &[member]),
            )
        }
        ("GET", "EthernetInterfaces/1") => Answer::of(200, resources::nic(machine)),
        ("POST", "Actions/ComputerSystem.Reset") => {
            let kind = body.get("ResetType").and_then(Value::as_str).unwrap_or_default();
            if !options.resets.types().contains(&kind) {
                return Answer::refused((
                    400,
                    "ActionParameterValueNotInList",
                    "The ResetType is not supported.",
                ));
            }
            if fault == Some(&Fault::NothingHappens) {
                return Answer::empty();
            }
            let outcome = machine.reset(kind, options.change, options.obeys);
            drop(state);
            match outcome {
                Ok(events) => {
                    shared.tell(events);
                    later(shared, name);
                    Answer::empty()
                }
                Err(refusal) => Answer::refused(refusal),
            }
        }
        ("GET", _) => Answer::missing(),
        _ => Answer::refused(NO_METHOD),
    }
}

fn log_in(shared: &Arc<Shared>, body: &Value) -> Answer {
    let mut state = shared.state();
    let word = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    if (word("UserName"), word("Password")) != (state.user.0.as_str(), state.user.1.as_str()) {
        return Answer::refused((401, "ResourceAtUriUnauthorized", "Invalid username or password."));
    }
    if Some(state.sessions.len()) >= shared.options.sessions {
        return Answer::refused((
            503,
            "SessionLimitExceeded",
            "The session establishment failed due to the number of simultaneous sessions.",
        ));
    }
    state.last_session += 1;
    let number = state.last_session;
    // Nobody guesses it in a test.
    let token = format!("token-{number}-of-{}", word("UserName"));
    state.sessions.insert(token.clone(), number);
    Answer::of(201, resources::session(number, word("UserName")))
        .with("x-auth-token", token)
        .with("location", format!("{SESSIONS}/{number}"))
}

fn log_out(state: &mut State, method: &Method, number: &str) -> Answer {
    let token = state
        .sessions
        .iter()
        .find(|(_, own)| own.to_string() == number)
        .map(|(token, _)| token.clone());
    match token {
        Some(token) if method == Method::DELETE => {
            state.sessions.remove(&token);
            Answer::empty()
        }
        Some(_) => Answer::refused(NO_METHOD),
        None => Answer::missing(),
    }
}

fn patch(machine: &mut Machine, shared: &Shared, headers: &HeaderMap, body: &Value) -> Answer {
    let options = &shared.options;
    let given = headers.get("if-match").and_then(|value| value.to_str().ok());
    let is_broken = matches!(options.etags, Etags::Broken | Etags::BrokenRequired);
    let is_its = |given: &str| !is_broken && given == format!("\"{}\"", machine.version);
    let is_any = |given: &str| given == "*" && options.etags != Etags::Broken;
    let matches = given.is_none_or(|given| is_its(given) || is_any(given));
    match options.etags {
        Etags::None => {}
        Etags::Required | Etags::BrokenRequired if given.is_none() => {
            return Answer::refused((428, "PreconditionRequired", "A precondition is required."));
        }
        _ if !matches => return Answer::refused((412, "PreconditionFailed", "The ETag did not match.")),
        _ => {}
    }
    let word = |name: &str| {
        body.pointer(&format!("/Boot/BootSourceOverride{name}"))
            .and_then(Value::as_str)
    };
    match machine.set_boot([word("Target"), word("Enabled"), word("Mode")], options.boot) {
        Ok(()) => Answer::empty(),
        Err(refusal) => Answer::refused(refusal),
    }
}

/// What takes its time happens.
fn later(shared: &Arc<Shared>, name: &str) {
    let Change::After(time) = shared.options.change else {
        return;
    };
    let (shared, name) = (Arc::downgrade(shared), name.to_owned());
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        let Some(shared) = shared.upgrade() else { return };
        let events = shared.state().machines.get_mut(&name).map(Machine::arrive);
        shared.tell(events.unwrap_or_default());
    });
}
