//! What comes from the server: no image, another one, too much, or not all of it.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    thread,
};

use super::*;

#[test]
fn what_is_no_disk_image_leaves_the_disk_as_it_was() {
    let qcow2 = [b"QFI\xfb".to_vec(), vec![0; MIB]].concat();
    for packed in [
        qcow2.clone(),
        zstd(&qcow2),
        gzip(&qcow2),
        b"<!DOCTYPE html>".to_vec(),
        vec![0; 2 * MIB],
        Vec::new(),
    ] {
        let refused = Trial::of(packed).fails(&mut old_disk(BLOCK), After::Untouched);
        assert!(matches!(refused, Failure::Format { .. }), "{refused}");
    }
    let refused = Trial::of(image(512)).fails(&mut old_disk(4096), After::Untouched);
    assert!(matches!(refused, Failure::Layout { .. }), "{refused}");
    let refused = Trial::of(image(BLOCK)).fails(&mut SimDisk::new(6 * MIB, BLOCK, 1), After::Untouched);
    assert!(matches!(refused, Failure::TooLarge { .. }), "{refused}");
    let refused = Trial::of(image(BLOCK)).fails(&mut SimDisk::new(MIB, BLOCK, 1), After::Untouched);
    assert!(matches!(refused, Failure::SmallDisk { .. }), "{refused}");
}

#[test]
fn an_image_that_is_not_what_was_meant_never_boots() {
    for packed in [image(BLOCK), zstd(&image(BLOCK))] {
        let mut trial = Trial::of(packed);
        trial.wanted = sha256(b"another");
        let refused = trial.fails(&mut old_disk(BLOCK), After::Unbootable);
        assert!(matches!(refused, Failure::Mismatch { .. }), "{refused}");
    }
}

#[test]
fn what_is_wrong_with_an_image_is_said_once_and_with_how_much_of_it_came() {
    let told = |packed: Vec<u8>, is_told, expected| {
        let mut trial = Trial::of(packed);
        (trial.wanted, trial.is_told) = (sha256(b"another"), is_told);
        Chain(&trial.fails(&mut old_disk(BLOCK), expected)).to_string()
    };
    let image = image(BLOCK);
    let other = told(image.clone(), true, After::Unbootable);
    let expected = format!(
        "verify the image, of which {} bytes were received: its digest is ",
        image.len()
    );
    assert!(other.starts_with(&expected), "{other}");
    let qcow2 = told(
        [b"QFI\xfb".to_vec(), vec![0; MIB]].concat(),
        true,
        After::Untouched,
    );
    assert!(
        qcow2.starts_with("recognise the image's format: it is a qcow2 image"),
        "{qcow2}"
    );
    let mut damaged = image;
    damaged[1030] ^= 1;
    let damaged = told(damaged, true, After::Untouched);
    assert!(
        damaged.starts_with("fit the image's partition table to the disk: the checksum"),
        "{damaged}"
    );
    let empty = told(Vec::new(), true, After::Untouched);
    assert_eq!(empty, "fetch the image: the server sent an empty file (0 bytes)");
    let untold = told(Vec::new(), false, After::Untouched);
    assert!(
        untold.contains("received 0 bytes, but the server sent no"),
        "{untold}"
    );
}

#[test]
fn what_is_wrong_with_a_file_that_its_server_encoded_is_told_with_that() {
    let image = image(BLOCK);
    let page = b"<!DOCTYPE html>".to_vec();
    for (packed, expected, why) in [
        (gzip(&image), After::Unbootable, "verify the image"),
        (page, After::Untouched, "recognise the image's format"),
    ] {
        let mut trial = Trial::of(packed);
        (trial.wanted, trial.encoding) = (sha256(&image), Some("gzip".to_owned()));
        let told = Chain(&trial.fails(&mut old_disk(BLOCK), expected)).to_string();
        assert!(
            told.starts_with("fetch the image: the server says that it encoded it (Content-Encoding: gzip)"),
            "{told}"
        );
        assert!(told.contains(why), "{told}");
    }
    // A file that lies there so is what was meant, and a disk that fails is not the server's matter.
    let mut trial = Trial::of(gzip(&image));
    trial.encoding = Some("x-gzip".to_owned());
    trial.write(&mut old_disk(BLOCK)).0.unwrap();
    trial.wanted = sha256(b"another");
    let mut disk = old_disk(BLOCK);
    disk.bad = Some((5 * MIB as u64, Errno::EIO));
    let failed = trial.fails(&mut disk, After::Unbootable);
    assert!(matches!(failed, Failure::Disk { .. }), "{failed}");
}

#[test]
fn a_stream_that_is_cut_off_or_goes_on_with_garbage_is_refused() {
    let image = image(BLOCK);
    for packed in [zstd(&image), gzip(&image)] {
        let cut = packed[..packed.len() - 3].to_vec();
        let garbage = [packed.clone(), b"garbage!garbage!garbage!".to_vec()].concat();
        for broken in [cut, garbage] {
            let refused = Trial::of(broken).fails(&mut old_disk(BLOCK), After::Unbootable);
            assert!(matches!(refused, Failure::Decode { .. }), "{refused}");
        }
    }
    // A file that was cut off before anyone took its digest.
    let refused = Trial::of(image[..6 * MIB].to_vec()).fails(&mut old_disk(BLOCK), After::Unbootable);
    assert!(matches!(refused, Failure::Layout { .. }), "{refused}");
    // Its table is there, and nothing of what that says: so much is known before the disk is touched.
    let refused = Trial::of(image[..200 << 10].to_vec()).fails(&mut old_disk(BLOCK), After::Untouched);
    assert!(matches!(refused, Failure::Layout { .. }), "{refused}");
}

#[test]
fn an_image_of_untold_length_that_is_not_whole_may_have_been_cut_off() {
    let untold = |packed: &[u8], wanted: &[u8], expected| {
        let mut trial = Trial::of(packed.to_vec());
        (trial.wanted, trial.is_told) = (sha256(wanted), false);
        trial.fails(&mut old_disk(BLOCK), expected)
    };
    let image = image(BLOCK);
    let (zstd, gzip) = (zstd(&image), gzip(&image));
    for (whole, came, expected) in [
        (&image, 7 * MIB, After::Unbootable),
        (&image, 200 << 10, After::Untouched),
        (&image, 100, After::Untouched),
        // Before its table, within the header of that, and within its entries.
        (&image, 512, After::Untouched),
        (&image, 518, After::Untouched),
        (&image, 522, After::Untouched),
        (&image, 600, After::Untouched),
        (&image, 1100, After::Untouched),
        (&zstd, zstd.len() - 3, After::Unbootable),
        (&gzip, gzip.len() - 3, After::Unbootable),
    ] {
        let cut = untold(&whole[..came], whole, expected);
        let told = Chain(&cut).to_string();
        assert!(matches!(cut, Failure::Untold { .. }), "{told}");
        assert!(
            told.contains(&format!(
                "received {came} bytes, but the server sent no Content-Length"
            )),
            "{told}"
        );
    }
    // Nothing that might still come makes these any better.
    let page = b"<!DOCTYPE html>";
    let refused = untold(page, &image, After::Untouched);
    assert!(matches!(refused, Failure::Format { .. }), "{refused}");
    let garbage = [&zstd[..], b"garbage!garbage!garbage!"].concat();
    let refused = untold(&garbage, &zstd, After::Unbootable);
    assert!(matches!(refused, Failure::Decode { .. }), "{refused}");
    let mut damaged = image.clone();
    damaged[1030] ^= 1;
    let refused = untold(&damaged, &image, After::Untouched);
    assert!(matches!(refused, Failure::Layout { .. }), "{refused}");
    // Nor does anything follow what has the digest that it should have: it was cut off before anyone took that.
    for (whole, came, expected) in [
        (&zstd, zstd.len() - 3, After::Unbootable),
        (&gzip, gzip.len() - 3, After::Unbootable),
        (&image, 200 << 10, After::Untouched),
        (&image, 600, After::Untouched),
        (&image, 100, After::Untouched),
    ] {
        let refused = untold(&whole[..came], &whole[..came], expected);
        assert!(!matches!(refused, Failure::Untold { .. }), "{came}: {refused}");
    }
}

#[test]
fn a_list_of_checksums_of_untold_length_that_helps_nobody_may_have_been_cut_off() {
    let learnt = |headers: &str, list: &str| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = format!("HTTP/1.1 200 OK\r\n{headers}\r\n{list}");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let head = BufReader::new(&stream).lines().map(Result::unwrap);
            assert!(head.take_while(|line| !line.is_empty()).count() > 0);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let image = ImageSource {
            url: format!("{url}/os.raw"),
            checksum: format!("{url}/SUMS"),
            algorithm: DigestAlgorithm::Auto,
        };
        let job = Write {
            image,
            ..Write::default()
        };
        let environment = Environment {
            root: bios().root(),
            clock: Clock::told(0),
            name_servers: NameServers::new(Vec::new),
            proxy: None,
        };
        let learnt = wanted(&job, &environment, &Work::unwatched());
        server.join().unwrap();
        learnt
    };
    let list = format!("{}  a.raw\n{}  os.raw\n", "cd".repeat(32), "ab".repeat(32));
    learnt("", &list).unwrap();
    for came in [50, 80] {
        let cut = learnt("", &list[..came]).unwrap_err();
        let told = Chain(&cut).to_string();
        assert!(matches!(cut, Failure::Untold { .. }), "{told}");
        let expected = format!("fetch the image's checksum list: received {came} bytes");
        assert!(told.contains(&expected), "{told}");

        let headers = format!("Content-Length: {came}\r\n");
        let refused = learnt(&headers, &list[..came]).unwrap_err();
        assert!(matches!(refused, Failure::Listed { .. }), "{refused}");
        assert!(refused.to_string().ends_with("/SUMS"), "{refused}");
    }
}

#[test]
fn several_frames_and_members_are_one_image() {
    let image = image(BLOCK);
    let (first, second) = image.split_at(3 * MIB + 17);
    for packed in [
        [zstd(first), zstd(second)].concat(),
        [gzip(first), gzip(second)].concat(),
    ] {
        let mut disk = old_disk(BLOCK);
        Trial::of(packed).write(&mut disk).0.unwrap();
        assert!(disk.bytes[MIB..7 * MIB] == image[MIB..7 * MIB]);
    }
}

#[test]
fn a_stream_that_goes_on_without_content_is_given_up() {
    // A frame to be skipped (RFC 8878, 3.1.2), and a member with nothing but a field of its own (RFC 1952, 2.3.1.1).
    let skipped = [&b"\x50\x2a\x4d\x18\xf8\xff\x01\x00"[..], &[0; 0x1fff8]].concat();
    let member = [
        &b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\xff\xff"[..],
        &[0; 0xffff],
        b"\x03\0",
        &[0; 8],
    ]
    .concat();
    let image = image(BLOCK);
    for (packed, empty) in [(zstd(&image), skipped), (gzip(&image), member)] {
        let trial = Trial::of([packed.clone(), empty.clone(), packed.clone()].concat());
        let mut large = SimDisk::new(20 * MIB, BLOCK, 0xee);
        assert_eq!(
            trial.write(&mut large).0.unwrap().image,
            16 * MIB as u64,
            "some of it is nothing to speak of"
        );

        let mut pieces =
            std::iter::once(Bytes::from(packed)).chain(std::iter::repeat_n(Bytes::from(empty), 10_000));
        let fetch = |sink: &mut dyn Sink| {
            while pieces.next().is_some_and(|piece| sink.take(piece)) {}
            Ok(Got {
                bytes: 0,
                is_told: false,
                encoding: None,
            })
        };
        let writing = Writing {
            wanted: trial.wanted.clone(),
            config_drive: None,
            is_drive_optional: false,
            root: &trial.tree.root(),
            target: &trial.target,
            work: &trial.work,
        };
        let mut after = After::Untouched;
        let refused = writing
            .write(&mut old_disk(BLOCK), fetch, &mut after)
            .unwrap_err();
        assert_eq!(after, After::Unbootable);
        assert!(
            matches!(&refused, Failure::Decode { source } if source.to_string().contains("in a row")),
            "{}",
            Chain(&refused)
        );
    }
}

#[test]
fn a_zstd_window_that_is_too_large_is_told_with_what_helps() {
    // A frame without content, whose window has 2^`log` bytes (RFC 8878, 3.1.1.1.2).
    let refused = |log: u8| {
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 1, 0, 0];
        Trial::of(frame.to_vec()).fails(&mut old_disk(BLOCK), After::Untouched)
    };
    let told = Chain(&refused(28)).to_string();
    assert!(told.contains("compress it with at most --long=27"), "{told}");
    let empty = refused(27);
    assert!(!matches!(empty, Failure::Window), "{empty}");
}

#[test]
fn an_image_that_swells_beyond_the_disk_is_refused() {
    let mut bomb = image(BLOCK);
    bomb.resize(64 * MIB, 0);
    let refused = Trial::of(zstd_with_size(&bomb)).fails(&mut old_disk(BLOCK), After::Untouched);
    assert!(
        matches!(refused, Failure::TooLarge { .. }),
        "it says so itself: {refused}"
    );
    for packed in [zstd(&bomb), gzip(&bomb)] {
        let refused = Trial::of(packed).fails(&mut old_disk(BLOCK), After::Unbootable);
        assert!(matches!(refused, Failure::TooLarge { .. }), "{refused}");
    }
}

#[test]
fn an_answer_that_brings_nothing_says_nothing_of_how_long_the_image_is() {
    let trial = Trial::of(image(BLOCK));
    let fetch = |sink: &mut dyn Sink| {
        // Its connection broke at once, and another server has something else under that name.
        sink.expect(Some(64 * MIB as u64));
        let bytes = trial.packed.len() as u64;
        sink.expect(Some(bytes));
        sink.take(trial.packed.clone().into());
        Ok(Got {
            bytes,
            is_told: true,
            encoding: None,
        })
    };
    let writing = Writing {
        wanted: trial.wanted.clone(),
        config_drive: None,
        is_drive_optional: false,
        root: &trial.tree.root(),
        target: &trial.target,
        work: &trial.work,
    };
    let written = writing.write(&mut old_disk(BLOCK), fetch, &mut After::Untouched);
    assert_eq!(written.unwrap().image, trial.packed.len() as u64);
}

#[test]
fn a_source_that_fails_is_to_blame_and_not_the_half_that_came() {
    let trial = Trial::of(zstd(&image(BLOCK)));
    let mut disk = old_disk(BLOCK);
    let mut after = After::Untouched;
    let writing = Writing {
        wanted: trial.wanted.clone(),
        config_drive: None,
        is_drive_optional: false,
        root: &trial.tree.root(),
        target: &trial.target,
        work: &trial.work,
    };
    let half = trial.packed[..trial.packed.len() / 2].to_vec();
    let fetch = |sink: &mut dyn Sink| {
        sink.take(half.into());
        Err(SourceError::ProxyAddress("x".to_owned()))
    };
    let failed = writing.write(&mut disk, fetch, &mut after).unwrap_err();
    assert!(matches!(failed, Failure::Source { .. }), "{failed}");
}
