//! Spending a token once: the Enrolment named after it, and what a second key that shows it does to the first.

use std::sync::Arc;

use kube::ResourceExt;
use muster_proto::{
    kinds::{Enrolment, EnrolmentSpec, Server, ServerStatus},
    session::ProblemKind,
};

use super::{
    ca::{CLIENT_LIFETIME, sha256_hex},
    clock,
    edge::Edge,
    enrol::{Applicant, Refused},
    metrics::EnrolOutcome,
    store::StoreError,
};
use crate::{token, written::version};

/// How long an Enrolment stays after all that it stands for has ended, in seconds, because clocks disagree.
pub(super) const GRACE: i64 = 300;

/// Whether a token was spent just now, or before by the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spent {
    Now,
    Before,
}

impl Edge {
    /// Creates the Enrolment, or finds the one that this key created before.
    pub(super) async fn spend(
        &self,
        applicant: &Applicant,
        name: &str,
        now: i64,
    ) -> Result<(Arc<Enrolment>, Spent), Refused> {
        let issued = self
            .keys
            .borrow()
            .ca
            .issue_client(&applicant.request, name, &applicant.enrolment, now);
        let certificate = issued.map_err(|error| {
            tracing::error!(error = %muster_proto::Chain(&error), "no certificate can be issued");
            Refused::new(
                EnrolOutcome::Unavailable,
                ProblemKind::Unavailable,
                "no certificate can be issued now",
            )
        })?;
        let ends = (applicant.claims.issued + token::LIFETIME).max(now + CLIENT_LIFETIME) + GRACE;
        let spec = EnrolmentSpec {
            server: name.to_owned(),
            key: applicant.request.fingerprint.clone(),
            certificate,
            contested: false,
            expires: clock::rfc3339(ends),
        };
        match self.store.create_enrolment(&applicant.enrolment, spec).await {
            Ok(made) => return Ok((made, Spent::Now)),
            Err(StoreError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let spent = match self.store.fetch_enrolment(&applicant.enrolment).await {
            Ok(spent) => spent,
            Err(StoreError::Gone { .. }) => {
                return Err(Refused::new(
                    EnrolOutcome::Expired,
                    ProblemKind::Token,
                    "the token has expired",
                ));
            }
            Err(error) => return Err(error.into()),
        };
        self.is_theirs(&spent, applicant).await?;
        Ok((spent, Spent::Before))
    }

    /// Refuses who shows a token that another key has spent, or that two have shown.
    async fn is_theirs(&self, spent: &Enrolment, applicant: &Applicant) -> Result<(), Refused> {
        let asks = || {
            self.contests
                .one(&applicant.enrolment)
                .ask()
                .map_err(Refused::too_often)
        };
        if spent.spec.key != applicant.request.fingerprint {
            asks()?;
            self.contest(spent).await?;
            let message =
                "the token was already used with another key, so the machine is contested; reboot it";
            return Err(Refused::new(EnrolOutcome::Reused, ProblemKind::Token, message));
        }
        if spent.spec.contested {
            asks()?;
            self.mark_contested(&spent.spec).await?;
            return Err(contested());
        }
        Ok(())
    }

    /// Two keys showed one token: the certificate that it bought is revoked, on the Enrolment first, then on the Server.
    async fn contest(&self, enrolment: &Enrolment) -> Result<(), Refused> {
        if !enrolment.spec.contested {
            self.store.contest_enrolment(&enrolment.name_any()).await?;
        }
        self.mark_contested(&enrolment.spec).await?;
        Ok(())
    }

    pub(super) async fn mark_contested(&self, spent: &EnrolmentSpec) -> Result<(), StoreError> {
        // A later session of the machine has nothing to do with this token.
        let change = |server: &Server| {
            server.session().filter(|session| session.key == spent.key)?;
            Some(ServerStatus {
                contested: true,
                ..server.status.clone().unwrap_or_default()
            })
        };
        match self.store.update(&spent.server, change).await {
            Ok(updated) => {
                if updated.written {
                    let message = "two clients presented this machine's one-time boot token; another device on the segment may have read \
                    it, so the session is revoked; next: reboot the machine";
                    self.warn_server(&updated.server, "Contested", message);
                }
                Ok(())
            }
            Err(StoreError::Gone { .. } | StoreError::CalledOff) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A retry of an older enrolment does not end a newer session of the same machine.
    pub(super) fn not_superseded(&self, enrolment: &Enrolment) -> Result<(), Refused> {
        let Some(server) = self.store.server(&enrolment.spec.server) else {
            return Ok(());
        };
        let Some(session) = server.session() else {
            return Ok(());
        };
        if session.key == enrolment.spec.key {
            return Ok(());
        }
        let of_server = self.store.enrolments_of(&enrolment.spec.server);
        let newer = of_server
            .iter()
            .any(|other| other.spec.key == session.key && made(other) > made(enrolment));
        if newer {
            let message = "a newer session of this machine has replaced this one";
            return Err(Refused::new(EnrolOutcome::Expired, ProblemKind::Token, message));
        }
        Ok(())
    }

    /// The other key may have come after the Enrolment was made and before the Server had a session that could be marked. To another
    /// replica it may have come so late that this one does not see it yet: the first call of the session that finds it contested
    /// marks the Server then ([`Edge::authenticate`]).
    pub(super) async fn still_alone(&self, applicant: &Applicant) -> Result<(), Refused> {
        match self.store.enrolment(&applicant.enrolment) {
            Some(spent) => self.is_theirs(&spent, applicant).await,
            None => Ok(()),
        }
    }
}

/// When `enrolment` was made, to compare with another one: creation times have whole seconds, and within one of them the versions
/// tell, which grow with each write. What is written later than its making is only that it is contested, and then it buys nothing.
fn made(enrolment: &Enrolment) -> (Option<jiff::Timestamp>, Option<u128>) {
    let created = enrolment.metadata.creation_timestamp.as_ref();
    (created.map(|time| time.0), version(enrolment))
}

/// The name of the Enrolment that spends `token`: `token-` and the first 40 hexadecimal digits of its SHA-256.
pub fn enrolment_name(token: &str) -> String {
    format!("token-{}", &sha256_hex(token.as_bytes())[..40])
}

fn contested() -> Refused {
    let message = "two clients presented this token, so it is no longer valid; reboot the machine";
    Refused::new(EnrolOutcome::Reused, ProblemKind::Token, message)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn the_enrolments_name_is_a_valid_object_name() {
        let name = enrolment_name("a");
        assert_eq!(name, "token-ca978112ca1bbdcafac231b39a23dc4da786eff8");
        assert_ne!(name, enrolment_name("b"));
    }

    #[test]
    fn of_two_enrolments_of_one_second_the_one_that_was_written_later_is_newer() {
        let at = |second: i64, version: &str| {
            let mut enrolment = Enrolment::new("token-a", EnrolmentSpec::default());
            enrolment.metadata.creation_timestamp = Some(Time(jiff::Timestamp::from_second(second).unwrap()));
            enrolment.metadata.resource_version = Some(version.to_owned());
            made(&enrolment)
        };
        assert!(at(7, "10") > at(7, "9"), "versions are numbers");
        assert!(at(8, "10") > at(7, "11"), "the older one was contested since");
    }
}
