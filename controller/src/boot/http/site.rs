//! What each URL answers. Reads the watched copies of the cluster and the files on disk; waits for nothing, unless a copy is known to be old.

use std::{
    fmt,
    net::{IpAddr, SocketAddrV4},
    sync::Arc,
};

use futures::FutureExt;
use jiff::Timestamp;
use kube::Resource;
use muster_proto::{Mac, kinds::DhcpMode};
use tokio::sync::watch;

use super::{
    Answer, Ends,
    anew::Anew,
    body::Body,
    response::{Kind, Response, Status, Step},
    route::{self, Boot, ReleaseName, Route, SegmentKey},
};
use crate::{
    boot::{
        config,
        files::{Files, Ramdisk},
        ipxe,
        lookup::Known,
        pass::{Maker, Pass, PassKey, Refused},
        policy::Verdict,
        segment::{Net, Plan},
        uki,
    },
    events::{Event, Events},
    log::Refusals,
    token::BootSecrets,
    world::World,
};

/// The boot files' site.
pub struct Site {
    /// What the cluster says.
    pub world: World,
    /// The Segments as they are served.
    pub plan: watch::Receiver<Arc<Plan>>,
    /// The ramdisks.
    pub files: Arc<Files>,
    /// From enrolment; `None` until it has them.
    pub secrets: watch::Receiver<Option<Arc<BootSecrets>>>,
    /// For hosts whose copy may be old.
    pub anew: Anew,
    /// Tells people.
    pub events: Events,
    /// What machines asked for and cannot have, though it is their due.
    pub(crate) said: Refusals,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Answer for Site {
    async fn answer(&self, target: &str, ends: Ends) -> Response {
        let now = Timestamp::now().as_second();
        let from = ends.peer.ip();
        let response = match Route::parse(target) {
            Some(Route::Script {
                segment,
                mac,
                uuid,
                pass,
            }) => {
                let uuid = uuid.as_deref();
                let path = route::script_path(&segment, mac, uuid);
                match self.admit(&path, pass.as_ref(), (&segment, mac), from, now) {
                    Ok(admitted) => {
                        let verdict = self.verdict(&segment, mac, uuid, from).await;
                        verdict
                            .and_then(|verdict| self.script(&admitted, &segment, mac, verdict, (from, now)))
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            Some(Route::Kernel(release)) => self.kernel(&release),
            Some(Route::Initramfs(boot)) => self.initramfs(&boot, from, now),
            Some(Route::Uki(boot)) => self.uki(&boot, from, now),
            None => Err((Status::NotFound, "there is no such file")),
        };
        response.unwrap_or_else(|(status, why)| Response::error(status, why))
    }
}

/// Why there is no answer; the text is for who looks at the machine's screen.
type Refusal = (Status, &'static str);

/// Who was given this URL by an answer of ours, and what the files for it are made with.
struct Admitted {
    net: Net,
    secrets: Arc<BootSecrets>,
}

impl Site {
    /// Lets pass who was given this very URL by us, for the machine with `mac`, and is on `segment`. Without the former, anybody there
    /// could ask for the token of any machine. A token says that the machine was served on that segment; it would say nothing if any other
    /// network could fetch it.
    fn admit(
        &self,
        path: &str,
        pass: Option<&Pass>,
        (segment, mac): (&SegmentKey, Mac),
        from: IpAddr,
        now: i64,
    ) -> Result<Admitted, Refusal> {
        let net = self.net(segment)?;
        let secrets = self.secrets.borrow().clone();
        let secrets = secrets.ok_or((Status::Unavailable, "enrolment is not ready yet"))?;
        let refusal = |refused| match refused {
            Refused::Forged => (
                Status::Forbidden,
                "this URL was not issued by this installation; reboot the machine",
            ),
            Refused::Old => (
                Status::Gone,
                "this URL was issued for a boot more than an hour ago",
            ),
            Refused::Early => (
                Status::Forbidden,
                "this URL was issued in the future: a clock is wrong",
            ),
        };
        match pass {
            Some(pass) => PassKey::of(&secrets.token_key)
                .check(path, pass, now)
                .map_err(refusal)?,
            // Where another DHCP server names our boot files, nobody gets a URL from us.
            None if net.mode == DhcpMode::Off => {}
            None => return Err(refusal(Refused::Forged)),
        }
        match from.to_canonical() {
            IpAddr::V4(from) if net.subnet.contains(from) => Ok(Admitted { net, secrets }),
            from => {
                if pass.is_some() {
                    self.tell_outside(&net, mac, from);
                }
                Err((
                    Status::Forbidden,
                    "this machine's address is not in the subnet of its Segment",
                ))
            }
        }
    }

    /// Tells of a machine that was told to boot on `net` and cannot, because it comes from elsewhere.
    fn tell_outside(&self, net: &Net, mac: Mac, from: IpAddr) {
        let Some(segment) = self.world.segment_called(&net.key, &net.namespace) else {
            return;
        };
        self.events.record(Event {
            about: segment.object_ref(&()),
            related: None,
            warning: true,
            reason: "OutsideSubnet",
            message: format!(
                "the machine with MAC address {mac} was told to boot here and asked for its boot files from {from}, which is not in \
                 subnet {}: it gets none; next: let it have an address of that subnet, or with dhcp.mode proxy let spec.subnet contain \
                 the addresses of all machines there; address translation (NAT) may not stand in between",
                net.subnet
            ),
        });
    }

    fn script(
        &self,
        Admitted { net, secrets }: &Admitted,
        segment: &SegmentKey,
        mac: Mac,
        verdict: Verdict,
        (from, now): (IpAddr, i64),
    ) -> Result<Response, Refusal> {
        let text = match verdict {
            Verdict::Silence(why) | Verdict::Disk(why) => ipxe::disk(why),
            Verdict::Ramdisk(_) => match self.files.current(net.profile) {
                Some(ramdisk) => {
                    let server = SocketAddrV4::new(net.boot, net.http_port);
                    let release: ReleaseName = ramdisk
                        .name
                        .parse()
                        .map_err(|_| (Status::Internal, "the release has no usable name"))?;
                    let maker = Maker::fresh(PassKey::of(&secrets.token_key), now)
                        .ok_or((Status::Internal, "no random bytes, or no clock"))?;
                    let boot = Boot {
                        pass: maker.pass(&route::boot_path(&release, segment, mac)),
                        release,
                        segment: segment.clone(),
                        mac,
                    };
                    ipxe::ramdisk(server, &boot, &net.kernel_parameters)
                }
                None => {
                    if let Some(left_out) = self.said.say(from, "no ramdisk") {
                        let profile = net.profile.name();
                        tracing::error!(%segment, profile, client = %from, left_out, "there is no ramdisk to boot");
                    }
                    ipxe::disk("there is no ramdisk for this segment's profile")
                }
            },
        };
        Ok(Response::ok(
            Kind::Text,
            Body::of(text),
            step("script", Some((segment, mac))),
        ))
    }

    fn kernel(&self, release: &ReleaseName) -> Result<Response, Refusal> {
        let ramdisk = self.ramdisk(release)?;
        let body = Body::default().with(ramdisk.kernel.segment());
        Ok(Response::ok(Kind::Binary, body, step("kernel", None)))
    }

    fn initramfs(&self, boot: &Boot, from: IpAddr, now: i64) -> Result<Response, Refusal> {
        let (_, (_, body)) = self.initrd(boot, from, now)?;
        Ok(Response::ok(
            Kind::Binary,
            body,
            step("initramfs", Some((&boot.segment, boot.mac))),
        ))
    }

    fn uki(&self, boot: &Boot, from: IpAddr, now: i64) -> Result<Response, Refusal> {
        let (net, (ramdisk, initrd)) = self.initrd(boot, from, now)?;
        let line = ipxe::command_line(&net.kernel_parameters);
        let image = uki::image(&ramdisk, &line, &initrd).map_err(|error| {
            if let Some(left_out) = self.said.say(from, "no UKI") {
                let release = &ramdisk.name;
                tracing::error!(%error, release, client = %from, left_out, "no UKI can be made from the release");
            }
            (Status::Internal, "the ramdisk cannot be packed into one file")
        })?;
        Ok(Response::ok(
            Kind::Efi,
            image,
            step("uki", Some((&boot.segment, boot.mac))),
        ))
    }

    /// The initrd of one boot: its configuration, the user's firmware, the ramdisk.
    fn initrd(&self, boot: &Boot, from: IpAddr, now: i64) -> Result<(Net, (Arc<Ramdisk>, Body)), Refusal> {
        let Admitted { net, secrets } = self.admit(
            &boot.path(),
            Some(&boot.pass),
            (&boot.segment, boot.mac),
            from,
            now,
        )?;
        let ramdisk = self.ramdisk(&boot.release)?;
        let config = config::config(&net, boot.mac, &boot.pass, &secrets);
        let mut body = Body::of(config::archive(&config));
        if let Some(extras) = &ramdisk.extras {
            body = body.with(extras.segment());
        }
        body = body.with(ramdisk.initramfs.segment());
        Ok((net, (ramdisk, body)))
    }

    fn ramdisk(&self, release: &ReleaseName) -> Result<Arc<Ramdisk>, Refusal> {
        self.files.release(release).ok_or((
            Status::NotFound,
            "this release of the ramdisk is no longer here; reboot the machine",
        ))
    }

    /// The network of `segment`, if it is served here.
    fn net(&self, segment: &SegmentKey) -> Result<Net, Refusal> {
        let plan = self.plan.borrow();
        match plan.get(&segment.to_string()) {
            Some(Ok(net)) => Ok(net.clone()),
            _ => Err((
                Status::NotFound,
                "there is no such segment, or it is not served here",
            )),
        }
    }

    /// True once every host is known: before, a known machine would be taken for an unknown one.
    fn is_complete(&self) -> bool {
        let World {
            segments,
            servers,
            hosts,
            ..
        } = &self.world;
        let ready = |ready: Option<Result<(), _>>| matches!(ready, Some(Ok(())));
        ready(segments.wait_until_ready().now_or_never())
            && ready(servers.wait_until_ready().now_or_never())
            && ready(hosts.wait_until_ready().now_or_never())
    }

    /// What the machine with `mac` that asks from the address `from` boots.
    async fn verdict(
        &self,
        segment: &SegmentKey,
        mac: Mac,
        uuid: Option<&str>,
        from: IpAddr,
    ) -> Result<Verdict, Refusal> {
        if !self.is_complete() {
            return Err((Status::Unavailable, "the cluster is not known yet"));
        }
        let segment = self
            .world
            .segments
            .find(|found| {
                found.metadata.namespace.as_deref() == Some(segment.namespace())
                    && found.metadata.name.as_deref() == Some(segment.name())
            })
            .ok_or((Status::NotFound, "there is no such segment"))?;
        let mut known = Known::of(&self.world, mac, uuid);
        // The leader may just have told the machine to boot its ramdisk.
        if let Some(stale) = self.world.stale()
            && let Some(host) = known.host.take()
        {
            known.host = self.anew.host(host, &stale, from).await;
        }
        let verdict = known.verdict(&segment);
        if let Some(event) = known.shared_uuid(mac, verdict) {
            self.events.record(event);
        }
        Ok(verdict)
    }
}

fn step(what: &'static str, whose: Option<(&SegmentKey, Mac)>) -> Step {
    Step {
        what,
        mac: whose.map(|(_, mac)| mac),
        segment: whose.map(|(segment, _)| segment.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
