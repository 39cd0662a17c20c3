//! Resources of one Redfish service: who we are there, redirects, ETags (DSP0266).

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{
    Method, StatusCode,
    body::Bytes,
    header::{AUTHORIZATION, ETAG, HeaderName, HeaderValue, IF_MATCH, LOCATION, RETRY_AFTER},
};
use muster_proto::text::clean;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    http::{Asked, HttpClient, Means, Told},
    model::{self, Root},
    quirks::Shape,
    verdict::{self, Said},
};
use crate::bmc::{Access, BmcError, Credentials, Permission};

/// So long a session stays that was forbidden what one before it was: a person may give the user more rights, which it has from its next
/// session on, and of one that was over some say the same.
const BARRED: Duration = Duration::from_secs(600);

/// Where every service begins.
const ROOT: &str = "/redfish/v1/";
/// The session's token (DSP0266, "Redfish session login authentication").
const TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
/// The most redirects that are followed.
const REDIRECTS: usize = 5;

/// What is remembered of a service between calls.
#[derive(Default)]
pub(super) struct Memory {
    root: Option<Root>,
    session: Option<Session>,
    /// The service has no sessions: every request says who we are.
    sessionless: bool,
    /// The only system, if the address leaves the choice.
    pub(super) system: Option<String>,
    /// Where and in which shape it took a boot override last.
    pub(super) taken: Option<(String, Shape)>,
}

impl Memory {
    /// What the service can do is to be found out again.
    pub(super) fn forget_service(&mut self) {
        self.root = None;
        self.sessionless = false;
        self.taken = None;
    }
}

/// A session that is open.
struct Session {
    token: HeaderValue,
    /// What to delete to end it.
    path: Option<String>,
    of: Credentials,
    /// When it was made because one before was forbidden something, and was so, too.
    forbidden: Option<Instant>,
}

impl Session {
    /// True if a newer one would be forbidden the same: so it was a moment ago.
    fn is_barred(&self) -> bool {
        self.forbidden.is_some_and(|since| since.elapsed() < BARRED)
    }
}

/// A resource as it was read.
pub(super) struct Resource {
    /// Where it is, after all redirects: a change follows none of some.
    pub(super) path: String,
    pub(super) value: Value,
    pub(super) etag: Option<String>,
}

/// What came of a change.
pub(super) enum Change {
    /// It is so now.
    Taken,
    /// The resource is not as the ETag says.
    Mismatch,
    /// Of the boot, the service left something as it is, and says why.
    LeftOut(BmcError),
}

/// One call's view of a service.
pub(super) struct Client<'a> {
    access: &'a Access,
    http: HttpClient<'a>,
    memory: &'a mut Memory,
    /// Why this call goes without a session, though the service has some.
    without_session: Option<BmcError>,
    /// The session is of this call.
    opened: bool,
}

impl<'a> Client<'a> {
    pub(super) fn new(
        access: &'a Access,
        means: &Means,
        memory: &'a mut Memory,
        permission: Option<Permission>,
    ) -> Result<Client<'a>, BmcError> {
        Ok(Client {
            access,
            http: HttpClient::new(access, &means.trust, means.limits, permission)?,
            memory,
            without_session: None,
            opened: false,
        })
    }

    pub(super) fn memory(&mut self) -> &mut Memory {
        self.memory
    }

    /// The service root, which every service shows to everybody.
    pub(super) async fn root(&mut self) -> Result<Root, BmcError> {
        if let Some(root) = &self.memory.root {
            return Ok(root.clone());
        }
        let mut asked = self.asked(Method::GET, ROOT.to_owned(), None, &[]);
        let mut told = self.follow(&mut asked).await?;
        // Not to everybody after all.
        if told.status == StatusCode::UNAUTHORIZED {
            asked.headers.push((AUTHORIZATION, self.basic()?));
            told = self.follow(&mut asked).await?;
        }
        if told.status == StatusCode::NOT_FOUND {
            return Err(BmcError::Answer {
                reason: format!("there is no Redfish service at {ROOT}"),
            });
        }
        let value = self.resource(&asked, &told)?.value;
        if !Root::is_one(&value) {
            return Err(BmcError::Answer {
                reason: format!("{ROOT} is not a Redfish service root"),
            });
        }
        let root = Root::read(&value);
        self.memory.root = Some(root.clone());
        Ok(root)
    }

    /// The resource at `path`; none if there is none.
    pub(super) async fn find(&mut self, path: &str) -> Result<Option<Resource>, BmcError> {
        let (asked, told) = self.authorised(Method::GET, path, None, &[]).await?;
        match told.status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            _ => self.resource(&asked, &told).map(Some),
        }
    }

    /// The resource at `path`, on which nothing depends: none if the service has it not, forbids it or fails to show it, too.
    pub(super) async fn advice(&mut self, path: &str) -> Result<Option<Resource>, BmcError> {
        let answer = self.authorised(Method::GET, path, None, &[]).await;
        // One that it always fails to show is not waited for.
        match answer.and_then(|(asked, told)| self.read(&asked, &told)) {
            Err(
                BmcError::Unsupported { .. }
                | BmcError::Refused { .. }
                | BmcError::Answer { .. }
                | BmcError::Credentials { .. },
            ) => Ok(None),
            read => read.map(Some),
        }
    }

    /// The resource at `path`.
    pub(super) async fn get(&mut self, path: &str) -> Result<Resource, BmcError> {
        let (asked, told) = self.authorised(Method::GET, path, None, &[]).await?;
        self.resource(&asked, &told)
    }

    /// Does the action at `path`.
    pub(super) async fn act(&mut self, path: &str, body: &Value) -> Result<(), BmcError> {
        let (asked, told) = self.authorised(Method::POST, path, Some(body), &[]).await?;
        match (told.status, self.success(&asked, &told)) {
            // Whoever stands between us and the BMC had no answer of it in time; what was asked for may have been done.
            (StatusCode::GATEWAY_TIMEOUT, Err(BmcError::Busy { message, .. })) => {
                Err(BmcError::Unreachable { reason: message })
            }
            (_, outcome) => outcome,
        }
    }

    /// Changes the resource at `path`, if it still is as `etag` says.
    pub(super) async fn change(
        &mut self,
        path: &str,
        body: &Value,
        etag: Option<&str>,
    ) -> Result<Change, BmcError> {
        let tag = etag.and_then(|etag| HeaderValue::from_str(etag).ok());
        let headers: Vec<_> = tag.map(|tag| (IF_MATCH, tag)).into_iter().collect();
        let (asked, told) = self.authorised(Method::PATCH, path, Some(body), &headers).await?;
        match told.status {
            StatusCode::PRECONDITION_FAILED | StatusCode::PRECONDITION_REQUIRED => Ok(Change::Mismatch),
            _ => {
                self.success(&asked, &told)?;
                Ok(match Said::of_boot_left_out(&told.body, &self.secrets()) {
                    Some(said) => {
                        Change::LeftOut(said.error(400, &clean(asked.to_string().as_bytes()), None))
                    }
                    None => Change::Taken,
                })
            }
        }
    }

    /// Ends the session, if there is one; that it cannot is nothing to anybody: it ends by itself.
    pub(super) async fn close(&mut self) {
        let Some(Session { token, path, .. }) = self.memory.session.take() else {
            return;
        };
        if let Some(path) = path {
            let mut asked = self.asked(Method::DELETE, path, None, &[(TOKEN, token)]);
            let _ = self.follow(&mut asked).await;
        }
    }

    /// Asks as the user of this access. A session that the service no longer knows is made anew, once.
    async fn authorised(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<(Asked, Told), BmcError> {
        let mut renewed = false;
        loop {
            let known = self.memory.session.is_some();
            let mut asked = self.asked(method.clone(), path.to_owned(), body, headers);
            asked.headers.push(self.authority().await?);
            let told = self.follow(&mut asked).await?;
            let said = (!told.status.is_success()).then(|| self.said(&told));
            let knows_none = said.as_ref().is_some_and(Said::knows_no_session);
            // It takes nothing but sessions, and what it said of those is no verdict on user and password.
            let has_no_room = matches!(self.without_session, Some(BmcError::Busy { .. }));
            let takes_sessions_only = knows_none || (told.status == StatusCode::UNAUTHORIZED && has_no_room);
            if takes_sessions_only && let Some(error) = self.without_session.take() {
                return Err(error);
            }
            let is_unknown = knows_none || told.status == StatusCode::UNAUTHORIZED;
            // Some say that of a session that is over; others give one, for as long as it lasts, the privileges that the user had then.
            let is_for_now = said.as_ref().is_some_and(Said::is_for_now);
            let is_forbidden = told.status == StatusCode::FORBIDDEN && !is_for_now;
            let session = self.memory.session.as_mut();
            let is_old =
                is_forbidden && !self.opened && session.as_ref().is_some_and(|session| !session.is_barred());
            if let Some(session) = session.filter(|_| is_forbidden && self.opened) {
                session.forbidden = Some(Instant::now());
            }
            if !(is_unknown || is_old) || !known || renewed {
                return Ok((asked, told));
            }
            // What it does not know need not be ended there; of others each that is left open is one less to be had.
            if knows_none {
                self.memory.session = None;
            }
            self.close().await;
            renewed = true;
        }
    }

    /// The header that says who we are.
    async fn authority(&mut self) -> Result<(HeaderName, HeaderValue), BmcError> {
        if self
            .memory
            .session
            .as_ref()
            .is_some_and(|session| session.of != self.access.credentials)
        {
            self.close().await;
        }
        if self.memory.session.is_none() && !self.memory.sessionless && self.without_session.is_none() {
            self.open().await?;
        }
        match &self.memory.session {
            Some(session) => Ok((TOKEN, session.token.clone())),
            None => Ok((AUTHORIZATION, self.basic()?)),
        }
    }

    /// Opens a session, if the service has any.
    async fn open(&mut self) -> Result<(), BmcError> {
        let Some(path) = self.root().await?.sessions else {
            self.memory.sessionless = true;
            return Ok(());
        };
        let credentials = &self.access.credentials;
        let body = json!({"UserName": credentials.username(), "Password": credentials.password()});
        let mut asked = self.asked(Method::POST, path, Some(&body), &[]);
        let told = self.follow(&mut asked).await?;
        if told.status.is_success() {
            // A copy: what hyper returns holds the whole buffer that the head was read into, 8 KB and more for each BMC.
            let token = told.headers.get(&TOKEN);
            let token = token.and_then(|token| HeaderValue::from_bytes(token.as_bytes()).ok());
            let Some(mut token) = token else {
                self.memory.sessionless = true;
                return Ok(());
            };
            token.set_sensitive(true);
            let origin = self.http.origin();
            let place = told
                .header(&LOCATION)
                .and_then(|place| verdict::redirect(place, &origin));
            let path = place.or_else(|| model::id(&model::json(&told.body)?));
            self.opened = true;
            self.memory.session = Some(Session {
                token,
                path,
                of: self.access.credentials.clone(),
                forbidden: None,
            });
            return Ok(());
        }
        match told.status {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                self.memory.sessionless = true;
                Ok(())
            }
            // Who we are is not known there. Anything else is of sessions only, such as that none is left: each vendor says that in
            // another way.
            _ => {
                let refused = self.success(&asked, &told);
                match refused {
                    Err(BmcError::Credentials { .. }) => refused,
                    _ => {
                        self.without_session = refused.err();
                        Ok(())
                    }
                }
            }
        }
    }

    fn basic(&self) -> Result<HeaderValue, BmcError> {
        let mut value =
            HeaderValue::from_str(&format!("Basic {}", self.pair())).map_err(|_| BmcError::Answer {
                reason: "the credentials cannot be sent in an HTTP header".to_owned(),
            })?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// User and password as RFC 7617 writes them.
    fn pair(&self) -> String {
        let credentials = &self.access.credentials;
        BASE64_STANDARD.encode(format!("{}:{}", credentials.username(), credentials.password()))
    }

    fn asked(
        &self,
        method: Method,
        path: String,
        body: Option<&Value>,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Asked {
        Asked {
            method,
            path,
            headers: headers.to_vec(),
            body: body.map(|body| Bytes::from(body.to_string())).unwrap_or_default(),
        }
    }

    /// Asks, and goes where it is sent: for what changes something, only if it may be sent again as it is (RFC 9110 section
    /// 15.4). `asked` has the last path afterwards.
    async fn follow(&mut self, asked: &mut Asked) -> Result<Told, BmcError> {
        for _ in 0..=REDIRECTS {
            let told = self.http.ask(asked).await?;
            let again = match told.status.as_u16() {
                307 | 308 => true,
                301..=303 => asked.method == Method::GET,
                _ => false,
            };
            if !again {
                return Ok(told);
            }
            let (location, origin) = (told.header(&LOCATION).unwrap_or_default(), self.http.origin());
            let Some(path) = verdict::redirect(location, &origin) else {
                return Err(verdict::astray(
                    &asked.path,
                    &verdict::blot(location, &self.secrets()),
                    &origin,
                ));
            };
            asked.path = path;
        }
        Err(BmcError::Answer {
            reason: format!("{asked}: too many redirects"),
        })
    }

    /// The resource that was asked for; what fails there may pass.
    fn resource(&self, asked: &Asked, told: &Told) -> Result<Resource, BmcError> {
        self.read(asked, told).map_err(verdict::of_look)
    }

    fn read(&self, asked: &Asked, told: &Told) -> Result<Resource, BmcError> {
        self.success(asked, told)?;
        // The parser's own words could repeat what it read.
        let value = model::json(&told.body).ok_or_else(|| BmcError::Answer {
            reason: clean(format!("{asked}: the answer is not JSON").as_bytes()),
        })?;
        let etag = told
            .header(&ETAG)
            .or_else(|| model::etag(&value))
            .map(str::to_owned);
        Ok(Resource {
            path: asked.path.clone(),
            value,
            etag,
        })
    }

    fn success(&self, asked: &Asked, told: &Told) -> Result<(), BmcError> {
        if told.status.is_success() {
            return Ok(());
        }
        let retry_after = verdict::retry_after(told.header(&RETRY_AFTER));
        let what = clean(asked.to_string().as_bytes());
        Err(self.said(told).error(told.status.as_u16(), &what, retry_after))
    }

    fn said(&self, told: &Told) -> Said {
        Said::read(told.status.as_u16(), &told.body, &self.secrets())
    }

    /// What a BMC could repeat of what it was told in confidence.
    fn secrets(&self) -> Vec<String> {
        let token = self
            .memory
            .session
            .as_ref()
            .and_then(|session| session.token.to_str().ok());
        let password = self.access.credentials.password().to_owned();
        vec![password, self.pair(), token.unwrap_or_default().to_owned()]
    }
}
