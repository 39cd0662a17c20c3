//! The loop that wants the Lease and keeps it.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::PostParams};
use muster_proto::Chain;
use tokio::{sync::watch, time::timeout};

use super::{
    clock,
    gate::Leadership,
    identity::Identity,
    next::{Contender, EPOCH_ANNOTATION, Step, Timing, begins, duration, holder, is_released},
    others::{Others, Rival},
};
use crate::{retry, watches::Watches};

/// How long what is under way may take when the term is given up. If it takes longer, the Lease is not given up but runs out.
const DRAIN: Duration = Duration::from_millis(1500);

/// Where this process stands.
#[derive(Clone, Debug)]
pub enum Standing {
    /// The Lease has not been read yet.
    Unknown,
    /// Another leads, and this process is ready to follow.
    Standby,
    /// Another installation acts on the same hosts, and this process is ready to follow.
    HeldBack(Rival),
    /// This process leads.
    Leads(Leadership),
}

impl Standing {
    /// The term of this process, if it leads.
    pub fn leadership(&self) -> Option<&Leadership> {
        match self {
            Standing::Leads(leadership) => Some(leadership),
            Standing::Unknown | Standing::Standby | Standing::HeldBack(_) => None,
        }
    }
}

/// Wants one Lease.
pub struct Election {
    leases: Api<Lease>,
    namespace: String,
    name: String,
    identity: Identity,
    timing: Timing,
    contender: Contender,
    others: Others,
    standing: watch::Sender<Standing>,
    /// Tells people of it while the Lease cannot be used.
    watches: Watches,
    /// Of whom people were told last that it leads, if it is another; empty: that nobody holds the Lease.
    leader: Option<String>,
}

impl std::fmt::Debug for Election {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Election of {} as {}", self.name, self.identity.text())
    }
}

type Seen = Pin<Box<dyn Stream<Item = Option<Lease>> + Send>>;

impl Election {
    /// For the Lease `name` in `namespace`, for the one who acts on the hosts of the namespace `hosts`; none: of all. `client` is gated by nothing.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: Identity,
        timing: Timing,
        watches: Watches,
        hosts: Option<String>,
    ) -> (Election, watch::Receiver<Standing>) {
        let (standing, told) = watch::channel(Standing::Unknown);
        let election = Election {
            others: Others::new(client.clone(), namespace, name, hosts, timing),
            leases: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            contender: Contender::new(identity.text().to_owned(), timing),
            identity,
            timing,
            standing,
            watches,
            leader: None,
        };
        (election, told)
    }

    /// Leads whenever it may, until `stop` is done; then it gives the Lease up, once what it let begin is done.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        // Only for one that waits: a leader hears of changes when its renewal is refused.
        let mut changes: Option<Seen> = None;
        loop {
            let identity = self.identity.clone();
            let gone = |holder: &str| identity.has_ended(holder);
            match self.contender.next(clock::now(), Timestamp::now(), gone) {
                Step::Look => self.look().await,
                Step::Write(lease) => self.write_alone(*lease).await,
                Step::Lost => self.contender.lost(),
                Step::Spent => self.spent(),
                Step::Wait(until) => {
                    let leads = self.contender.tenure().is_some();
                    if leads {
                        changes = None;
                    } else if changes.is_none() {
                        changes = Some(seen(self.leases.clone(), &self.name));
                    }
                    tokio::select! {
                        () = tokio::time::sleep(until.saturating_sub(clock::now())) => {}
                        lease = change(changes.as_mut()) => self.saw(lease),
                        () = &mut stop => return self.give_up().await,
                    }
                }
            }
            self.give_way();
            self.tell();
        }
    }

    /// Bounds one request, so that a connection that went silent leaves time for another.
    fn patience(&self) -> Duration {
        self.timing.renew / 2
    }

    async fn look(&mut self) {
        match timeout(self.patience(), self.leases.get_opt(&self.name)).await {
            Ok(Ok(lease)) => self.saw(lease),
            Ok(Err(error)) => self.failed("read", &self.watches.words("Lease", &error)),
            Err(_) => self.late("read"),
        }
    }

    /// The Lease is as given.
    fn saw(&mut self, lease: Option<Lease>) {
        self.contender.saw(lease, clock::now());
        // One that can be read and still not be taken is no better for being looked at again.
        if !self.contender.is_spent() {
            self.watches.lease(None);
        }
    }

    /// Writes the Lease, unless it would begin a term while another installation acts on the same hosts.
    async fn write_alone(&mut self, mut lease: Lease) {
        if self.contender.tenure().is_some() {
            self.others.mark(&mut lease);
            return self.write(lease).await;
        }
        let began = clock::now();
        let could = self.others.look(self.patience()).await;
        if let Some(rival) = self.others.rival(clock::now()) {
            return self.hold_back(rival);
        }
        // Who had the Lease of another namespace during a long look began before.
        begins(&mut lease, Timestamp::now());
        self.others.mark(&mut lease);
        let sent = clock::now();
        self.write(lease).await;
        if self.contender.tenure().is_none() {
            return;
        }
        let now = clock::now();
        let quick = could && now.saturating_sub(began) < self.timing.retry;
        self.others
            .begins(self.contender.lease(), quick, now, self.patience());
        // Nothing is done before that look, unless it takes so long that it would hold up the first renewal.
        let renewal = (sent + self.timing.retry).saturating_sub(now);
        let _ = timeout(renewal, self.others.over()).await;
    }

    /// A term that another installation has begun too ends for one of them.
    fn give_way(&mut self) {
        if self.contender.tenure().is_none() {
            return;
        }
        if let Some(rival) = self.others.beside(clock::now(), self.patience()) {
            self.contender.lost();
            self.hold_back(rival);
        }
    }

    fn hold_back(&mut self, rival: Rival) {
        let now = clock::now();
        self.others.tell(&rival, now);
        self.contender.put_off(now);
        self.standing.send_if_modified(|standing| {
            let new = match standing {
                // The term is closed first.
                Standing::Leads(_) => false,
                Standing::HeldBack(known) => *known != rival,
                Standing::Unknown | Standing::Standby => true,
            };
            if new {
                *standing = Standing::HeldBack(rival);
            }
            new
        });
    }

    async fn write(&mut self, lease: Lease) {
        let sent = clock::now();
        let new = lease.metadata.resource_version.is_none();
        match timeout(self.patience(), self.put(lease)).await {
            Ok(Ok(lease)) => {
                self.watches.lease(None);
                self.contender.written(lease, sent);
            }
            // Made, written or deleted by another since it was seen. A new one is not found where there is no namespace for it.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 || (status.code == 404 && !new) => {
                if self.contender.refused(clock::now()) {
                    tracing::warn!(lease = %self.name, why = %status.message, "writing the Lease keeps failing, as if others wrote it; retrying");
                }
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                let namespace = &self.namespace;
                let why = format!(
                    "the namespace {namespace} does not exist; next: create it (kubectl create namespace {namespace})"
                );
                self.failed("written", &why);
            }
            Ok(Err(error)) => self.failed("written", &self.watches.words("Lease", &error)),
            Err(_) => self.late("written"),
        }
    }

    async fn put(&self, mut lease: Lease) -> kube::Result<Lease> {
        lease.metadata.managed_fields = None;
        if lease.metadata.resource_version.is_some() {
            self.leases
                .replace(&self.name, &PostParams::default(), &lease)
                .await
        } else {
            lease.metadata.name = Some(self.name.clone());
            lease.metadata.namespace = None;
            lease.metadata.uid = None;
            self.leases.create(&PostParams::default(), &lease).await
        }
    }

    fn late(&mut self, action: &'static str) {
        let why = format!("the API server gave no answer within {:?}", self.patience());
        self.failed(action, &why);
    }

    /// Nobody can lead before a person has been there.
    fn spent(&mut self) {
        let (namespace, name) = (&self.namespace, &self.name);
        let why = format!(
            "its annotation {EPOCH_ANNOTATION} is too high for the number of a term, so nobody leads; next: remove it (kubectl -n {namespace} annotate lease {name} {EPOCH_ANNOTATION}-)"
        );
        self.failed("taken", &why);
    }

    /// The Lease could not be `read`, `written` or `taken`.
    fn failed(&mut self, action: &'static str, error: &str) {
        tracing::warn!(lease = %self.name, error, "the Lease could not be {action}; retrying");
        self.watches.lease(Some(action));
        self.contender.failed(clock::now());
    }

    /// Makes what others see of the term true.
    fn tell(&mut self) {
        let term = self.standing.borrow().leadership().cloned();
        match (self.contender.tenure(), term) {
            (Some(tenure), Some(term)) if term.epoch() == tenure.epoch => term.extend(tenure.until),
            (Some(tenure), None) if clock::now() < tenure.until => {
                tracing::info!(lease = %self.name, epoch = tenure.epoch, "leads");
                let term = Leadership::new(tenure.epoch, tenure.until);
                self.standing.send_replace(Standing::Leads(term));
            }
            // Ended before it began: the answer came too late.
            (Some(_), None) => {}
            (_, Some(term)) => {
                term.close();
                tracing::warn!(lease = %self.name, epoch = term.epoch(), "no longer leading; nothing is written until this process leads again");
                self.standing.send_replace(Standing::Standby);
                self.leader = None;
            }
            (None, None) => self.stand_by(),
        }
    }

    fn stand_by(&mut self) {
        let lease = self.contender.lease().filter(|lease| !is_released(lease));
        let Some(lease) = lease else { return };
        let other = holder(lease).unwrap_or_default();
        if other == self.identity.text() {
            return;
        }
        if self.leader.as_deref() != Some(other) {
            if other.is_empty() {
                let seconds = duration(lease, self.timing.lease).as_secs();
                tracing::warn!(lease = %self.name, "the Lease has no holder, but none released it, so another process may still act; next: it is taken once it has not changed for {seconds} s");
            } else {
                tracing::info!(lease = %self.name, leader = %muster_proto::text::clean(other.as_bytes()), "another process leads; standing by");
            }
            self.leader = Some(other.to_owned());
        }
        self.standing.send_if_modified(|standing| {
            let new = match standing {
                Standing::Unknown => true,
                Standing::HeldBack(_) => self.others.rival(clock::now()).is_none(),
                Standing::Standby | Standing::Leads(_) => false,
            };
            if new {
                *standing = Standing::Standby;
            }
            new
        });
    }

    async fn give_up(mut self) {
        let Some(term) = self.standing.borrow().leadership().cloned() else {
            return;
        };
        self.standing.send_replace(Standing::Standby);
        let drained = term.drain(DRAIN).await;
        term.close();
        if !drained {
            tracing::warn!(lease = %self.name, "a write is still unanswered: the Lease is not released but left to expire");
            return;
        }
        // A renewal of which nobody knows whether it was taken.
        if self.contender.released(Timestamp::now()).is_none() {
            self.look().await;
        }
        let Some(lease) = self.contender.released(Timestamp::now()) else {
            return;
        };
        match timeout(self.patience(), self.put(lease)).await {
            Ok(Ok(_)) => tracing::info!(lease = %self.name, "the Lease is released"),
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), lease = %self.name, "the Lease is left to expire");
            }
            Err(_) => tracing::warn!(lease = %self.name, "the Lease is left to expire"),
        }
    }
}

/// The Lease, now and whenever it changes.
fn seen(leases: Api<Lease>, name: &str) -> Seen {
    retry::watch_one(leases, name)
        .filter_map(|seen| {
            // Without the watch the Lease is read when it should have run out.
            let seen = seen.inspect_err(|error| {
                tracing::debug!(error = %Chain(error), "watch of the Lease failed; retrying");
            });
            std::future::ready(seen.ok())
        })
        .boxed()
}

async fn change(changes: Option<&mut Seen>) -> Option<Lease> {
    let next = async { changes?.next().await };
    match next.await {
        Some(lease) => lease,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;

    fn election(api: &std::sync::Arc<FakeApi>) -> (Election, watch::Receiver<Standing>, Watches) {
        election_with(api, Timing::new(15, 10, 2).unwrap())
    }

    fn election_with(
        api: &std::sync::Arc<FakeApi>,
        timing: Timing,
    ) -> (Election, watch::Receiver<Standing>, Watches) {
        let watches = Watches::default();
        let identity = Identity::own();
        let (election, told) = Election::new(
            api.client(),
            "muster-system",
            "control",
            identity,
            timing,
            watches.clone(),
            None,
        );
        (election, told, watches)
    }

    fn lease_of(other: &str, version: &str) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.resource_version = Some(version.to_owned());
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(other.to_owned());
        lease
    }

    #[tokio::test]
    async fn an_api_server_that_takes_four_seconds_keeps_nobody_from_leading() {
        // By the clock that nobody sets, so all of it goes five times as fast.
        let timing = Timing {
            lease: Duration::from_secs(3),
            renew: Duration::from_secs(2),
            retry: Duration::from_millis(500),
        };
        let api = FakeApi::new();
        api.set_slow(Duration::from_millis(800));
        let (election, mut told, watches) = election_with(&api, timing);
        tokio::spawn(election.run(std::future::pending()));
        let leads = |now: &Standing| now.leadership().is_some();
        let began = timeout(Duration::from_secs(20), told.wait_for(leads)).await;
        let term = began.expect("it leads").unwrap().leadership().cloned().unwrap();
        api.requests();
        // It renews all the time, and looks at the others twice.
        for _ in 0..350 {
            assert!(term.still(), "{:?}", api.requests());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(watches.lease_trouble(), None);
        let asked = api.requests();
        let look = "GET /apis/coordination.k8s.io/v1/leases";
        assert!(asked.iter().any(|request| request == look), "{asked:?}");
    }

    #[tokio::test]
    async fn a_term_begins_after_the_look_at_the_others() {
        let api = FakeApi::new();
        api.hold("GET", "/apis/coordination.k8s.io/v1/leases");
        let (election, mut told, _watches) = election(&api);
        tokio::spawn(election.run(std::future::pending()));
        while !api.is_held() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let seen = Timestamp::now();
        api.release();
        let leads = |now: &Standing| now.leadership().is_some();
        let began = timeout(Duration::from_secs(20), told.wait_for(leads)).await;
        began.expect("it leads").unwrap();
        let lease: Lease = api.get("leases", "control").unwrap();
        let acquired = lease.spec.unwrap().acquire_time.unwrap().0;
        assert!(acquired >= seen, "{acquired} {seen}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_cannot_be_used_is_told_until_it_can() {
        let api = FakeApi::new();
        let (mut election, _told, watches) = election(&api);
        api.set_slow(Duration::from_secs(6));
        election.look().await;
        tokio::time::sleep(Duration::from_secs(25)).await;
        let told = watches.lease_trouble();
        assert_eq!(told.as_deref(), Some("the Lease could not be read for 25 s"));
        api.set_slow(Duration::ZERO);
        election.look().await;
        assert_eq!(watches.lease_trouble(), None);
    }

    #[tokio::test]
    async fn a_lease_that_leaves_no_number_for_a_term_is_told_as_long_as_it_does() {
        let api = FakeApi::new();
        let mut lease = lease_of("", "1");
        lease.metadata.name = Some("control".to_owned());
        let far = (EPOCH_ANNOTATION.to_owned(), i64::MAX.to_string());
        lease.metadata.annotations = Some([far].into());
        api.put("leases", &lease);
        let (election, mut told, watches) = election_with(&api, Timing::new(3, 2, 1).unwrap());
        tokio::spawn(election.run(std::future::pending()));
        // It is ready to follow, also where nobody holds the Lease.
        let stands_by = told.wait_for(|now| matches!(now, Standing::Standby));
        let stands_by = timeout(Duration::from_secs(20), stands_by).await;
        stands_by.expect("it stands by").unwrap();
        let trouble = async {
            while watches.lease_trouble().as_deref() != Some("the Lease could not be taken for 3 s") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(20), trouble)
            .await
            .expect("it is told, and not from each look on");
        api.edit(
            "leases",
            "control",
            &serde_json::json!({"metadata": {"annotations": {EPOCH_ANNOTATION: null}}}),
        );
        let leads = |now: &Standing| now.leadership().is_some();
        let began = timeout(Duration::from_secs(20), told.wait_for(leads)).await;
        began.expect("it leads").unwrap();
        assert_eq!(watches.lease_trouble(), None);
    }

    #[tokio::test]
    async fn who_leads_is_told_whenever_it_is_another() {
        let (mut election, _told, _watches) = election(&FakeApi::new());
        for (version, other) in [("1", "a"), ("2", "b")] {
            election
                .contender
                .saw(Some(lease_of(other, version)), clock::now());
            election.tell();
            assert_eq!(election.leader.as_deref(), Some(other));
        }
        let now = clock::now();
        let own = lease_of(election.identity.text(), "3");
        election.contender.written(own, now);
        election.tell();
        election.contender.lost();
        election.tell();
        assert_eq!(election.leader, None, "it is told anew who leads");
        election.contender.saw(Some(lease_of("b", "4")), clock::now());
        election.tell();
        assert_eq!(election.leader.as_deref(), Some("b"));
    }
}
