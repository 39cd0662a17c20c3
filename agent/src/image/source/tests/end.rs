//! Where a file ends, and who told that.

use super::*;

#[test]
fn a_file_of_unknown_length_whose_connection_breaks_behind_its_end_is_whole() {
    let file = file();
    let length = file.len();
    let broken = || Answer::Bytes(chunked(&file, length, "", "ETag: \"v1\"\r\n"));
    for extra in ["", "ETag: \"v1\"\r\n"] {
        let end = Answer::Bytes(nothing_behind(length, extra));
        let server = Server::plain(vec![broken(), end]);
        assert!(plain(&server.url).unwrap() == file);
        let request = &server.requests()[1];
        let range = format!("\r\nrange: bytes={length}-\r\n");
        assert!(request.contains(&range), "{request}");
    }
    for other in [
        nothing_behind(length - 1, ""),
        nothing_behind(length + 1, ""),
        nothing_behind(length, "ETag: \"v2\"\r\n"),
    ] {
        let server = Server::plain(vec![broken(), Answer::Bytes(other)]);
        let refused = plain(&server.url);
        assert!(
            matches!(refused, Err(SourceError::Changed { at: 200_000, .. })),
            "{refused:?}"
        );
        server.requests();
    }
}

#[test]
fn it_is_known_whether_anybody_told_where_a_file_ends() {
    struct Any;
    impl Sink for Any {
        fn expect(&mut self, _: Option<u64>) {}
        fn take(&mut self, _: Bytes) -> bool {
            true
        }
    }
    let file = file();
    let length = file.len();
    let bare = |end: usize| answer("200 OK", "", &file[..end]);
    let broken = || chunked(&file, 70_000, "", "");
    let rest = |headers: &str| answer("206 Partial Content", headers, &file[70_000..]);
    let with = |headers: &str| answer("200 OK", headers, &file);
    let chunks = [format!("{length:x}\r\n").as_bytes(), &file[..], b"\r\n0\r\n\r\n"].concat();
    let cases = [
        (vec![part(&file, 0, length, "")], true, length),
        (vec![chunked(&file, length, "0\r\n\r\n", "")], true, length),
        (vec![bare(length)], false, length),
        (vec![bare(70_000)], false, 70_000),
        // A range has no meaning there.
        (
            vec![with("Content-Range: bytes 0-199999/200000\r\n")],
            false,
            length,
        ),
        // As hyper understands them.
        (vec![with("Content-Length: 200000, 200000\r\n")], true, length),
        (vec![with("Transfer-Encoding: unchunked\r\n")], false, length),
        (
            vec![with("Transfer-Encoding: identity\r\nContent-Length: 200000\r\n")],
            false,
            length,
        ),
        (
            vec![answer(
                "200 OK",
                "Transfer-Encoding: identity\r\nTransfer-Encoding: Chunked\r\n",
                &chunks,
            )],
            true,
            length,
        ),
        // It is asked whether anything follows.
        (vec![bare(length), nothing_behind(length, "")], true, length),
        (vec![bare(length), nothing_behind(length + 1, "")], false, length),
        (vec![bare(length), part(&file, 0, length, "")], false, length),
        (vec![bare(70_000), part(&file, 70_000, length, "")], true, length),
        (vec![bare(70_000), part(&file, 80_000, length, "")], false, 70_000),
        // Which breaks before anything came.
        (
            vec![
                bare(length),
                answer(
                    "206 Partial Content",
                    "Content-Range: bytes 200000-200009/*\r\nContent-Length: 10\r\n",
                    b"",
                ),
            ],
            false,
            length,
        ),
        (vec![broken(), bare(length)], false, length),
        (
            vec![broken(), rest("Content-Range: bytes 70000-199999/200000\r\n")],
            true,
            length,
        ),
        (
            vec![
                broken(),
                rest("Content-Range: bytes 70000-199999/*\r\nContent-Length: 130000\r\n"),
            ],
            false,
            length,
        ),
        // Of a part the end is told, and not that of the file.
        (
            vec![
                broken(),
                answer(
                    "206 Partial Content",
                    "Content-Range: bytes 70000-99999/*\r\nContent-Length: 30000\r\n",
                    &file[70_000..100_000],
                ),
                answer(
                    "206 Partial Content",
                    "Content-Range: bytes 100000-199999/*\r\nContent-Length: 100000\r\n",
                    &file[100_000..],
                ),
                nothing_behind(length, ""),
            ],
            true,
            length,
        ),
        (
            vec![broken(), rest("Content-Range: bytes 70000-199999/*\r\n")],
            false,
            length,
        ),
        (vec![broken(), nothing_behind(70_000, "")], true, 70_000),
    ];
    for (case, (answers, is_told, bytes)) in cases.into_iter().enumerate() {
        let server = Server::plain(answers.into_iter().map(Answer::Bytes).collect());
        let environment = environment(&Tree::new());
        let got = get(
            &server.url,
            &environment,
            patience(),
            &Work::unwatched(),
            &mut Any,
        );
        let expected = Got {
            bytes: bytes as u64,
            is_told,
            encoding: None,
        };
        assert_eq!(got.unwrap(), expected, "{case}");
        server.requests();
    }
}

#[test]
fn an_answer_that_ends_before_what_came_earlier_or_before_its_part_does_is_no_end() {
    let file = file();
    let range = "Content-Range: bytes 70000-199999/200000\r\n";
    let server = Server::plain(vec![
        Answer::Bytes(chunked(&file, 70_000, "", "")),
        Answer::Bytes(answer("200 OK", "", &file[..50_000])),
        Answer::Bytes(answer("206 Partial Content", range, &file[70_000..150_000])),
        Answer::Bytes(part(&file, 150_000, file.len(), "")),
    ]);
    assert!(plain(&server.url).unwrap() == file);
    let requests = server.requests();
    asks_for(&requests[1..], ["70000-", "70000-", "150000-"]);
}
