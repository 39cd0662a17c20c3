use super::*;

#[tokio::test]
async fn everyone_who_waits_for_the_world_is_woken() {
    let (segments, mut segments_writer) = reflector::store();
    let (servers, mut servers_writer) = reflector::store();
    let (hosts, mut hosts_writer) = reflector::store();
    let (enrolments, mut enrolments_writer) = reflector::store();
    let world = World {
        segments,
        servers,
        written: Arc::default(),
        hosts,
        enrolments,
        hardware: empty(),
        machines: Arc::default(),
        unreadable: Arc::default(),
        watches: Watches::default(),
    };
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { world.ready().await })
        })
        .collect();
    tokio::task::yield_now().await;
    segments_writer.apply_watcher_event(&watcher::Event::InitDone);
    servers_writer.apply_watcher_event(&watcher::Event::InitDone);
    hosts_writer.apply_watcher_event(&watcher::Event::InitDone);
    enrolments_writer.apply_watcher_event(&watcher::Event::InitDone);
    for one in waiting {
        let woken = tokio::time::timeout(std::time::Duration::from_secs(20), one).await;
        assert!(woken.expect("woken in time").unwrap());
    }
}
