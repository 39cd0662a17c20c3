//! Network namespaces, so that tests have sockets and cables of their own.

use std::{process::Command, sync::mpsc, thread::JoinHandle};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, held by a thread that works in it.
pub(super) struct Namespace {
    pub(super) id: i32,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    pub(super) fn new() -> Namespace {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (tell, id) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        let namespace = Namespace {
            id: id.recv().expect("network namespaces need root"),
            jobs: Some(jobs),
            thread: Some(thread),
        };
        namespace.ip("link set lo up");
        namespace
    }

    pub(super) fn start(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
    }

    pub(super) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, done) = mpsc::channel();
        self.start(move || tell.send(job()).unwrap());
        done.recv().unwrap()
    }

    pub(super) fn ip(&self, arguments: &str) {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let shown = arguments.join(" ");
        let status = self.run(move || Command::new("ip").args(arguments).status().unwrap());
        assert!(status.success(), "ip {shown}");
    }

    /// A cable from our bridge to a new port of `other`.
    pub(super) fn cable(&self, other: &Namespace, port: &str) {
        let there = other.id;
        self.ip(&format!(
            "link add to-{port} type veth peer name {port} netns /proc/{there}/ns/net"
        ));
        self.ip(&format!("link set to-{port} master br0 up"));
        other.ip(&format!("link set {port} up"));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
