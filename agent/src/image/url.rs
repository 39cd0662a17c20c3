//! Where images come from: `http` and `https` URLs, taken apart.

use std::{borrow::Cow, fmt};

use percent_encoding::percent_decode_str;

use crate::dial::endpoint::{self, Host};

/// The longest URL that is taken, in bytes.
const LONGEST: usize = 8192;

/// A URL whose path and query may hold a secret: it is shown without them where people read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// True for `https`.
    pub is_tls: bool,
    /// An address, or a name to look up.
    pub host: Host,
    /// TCP port.
    pub port: u16,
    /// Path and query, beginning with a slash.
    pub target: String,
}

/// The text is no URL that an image can be had from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme, or none.
    #[error("parse URL {0:?}: it must begin with http:// or https://")]
    Scheme(String),
    /// A user and password in it.
    #[error("parse URL {0:?}: it must not contain a user name or password")]
    Credentials(String),
    /// The rest makes no sense.
    #[error("parse URL {0:?}")]
    Malformed(String),
}

impl Url {
    /// # Errors
    /// [`UrlError`], one variant for each way to fail.
    pub fn parse(text: &str) -> Result<Url, UrlError> {
        let text = text.trim();
        let scheme = |name: &str| {
            text.get(..name.len())
                .filter(|start| start.eq_ignore_ascii_case(name))
                .map(|_| &text[name.len()..])
        };
        let (is_tls, rest) = match (scheme("http://"), scheme("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(UrlError::Scheme(bare(text))),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(UrlError::Credentials(bare(text)));
        }
        let target = if target.starts_with('/') {
            target.to_owned()
        } else {
            format!("/{target}")
        };
        let usable = target.bytes().all(|byte| byte.is_ascii_graphic())
            && target.parse::<hyper::Uri>().is_ok()
            && text.len() <= LONGEST;
        let authority = endpoint::authority(authority, if is_tls { 443 } else { 80 });
        match authority {
            Some((host, port)) if usable => Ok(Url {
                is_tls,
                host,
                port,
                target,
            }),
            _ => Err(UrlError::Malformed(bare(text))),
        }
    }

    /// Where the `Location` of an answer from here leads.
    ///
    /// # Errors
    /// As [`Url::parse`].
    pub fn join(&self, location: &str) -> Result<Url, UrlError> {
        let location = location.trim();
        // Of the beginning only: a query may hold another URL.
        let scheme = location.split_once("://").map(|(scheme, _)| scheme);
        if scheme.is_some_and(|scheme| !scheme.contains(['/', '?', '#'])) {
            return Url::parse(location);
        }
        let origin = self.origin();
        let path = self.target.split('?').next().unwrap_or_default();
        if location.starts_with("//") {
            let scheme = if self.is_tls { "https:" } else { "http:" };
            Url::parse(&format!("{scheme}{location}"))
        } else if location.starts_with('/') {
            Url::parse(&format!("{origin}{location}"))
        } else if location.starts_with('?') {
            Url::parse(&format!("{origin}{path}{location}"))
        } else {
            let directory = &path[..=path.rfind('/').unwrap_or(0)];
            Url::parse(&format!("{origin}{directory}{location}"))
        }
    }

    /// `scheme://host:port`.
    pub fn origin(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    /// `host:port`, as a proxy has it.
    pub fn authority(&self) -> String {
        endpoint::shown(&self.host, self.port)
    }

    /// The same for the header `Host`, where a scheme's own port is left out (RFC 9110, 7.2): signatures of URLs hold for it as everybody
    /// else writes it.
    pub fn host_header(&self) -> String {
        let authority = self.authority();
        let own = if self.is_tls { ":443" } else { ":80" };
        match authority.strip_suffix(own) {
            Some(host) => host.to_owned(),
            None => authority,
        }
    }

    /// The last part of the path: the file's name, as it is written here and without its encoding.
    pub fn file_names(&self) -> [Cow<'_, str>; 2] {
        let path = self.target.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        [name.into(), percent_decode_str(name).decode_utf8_lossy()]
    }
}

/// A URL as people may read it: without its query, in which signatures stand, and without what may be a user and password.
pub fn shown(text: &str) -> String {
    match Url::parse(text) {
        // An `@` in it belongs to its path.
        Ok(_) => without_query(muster_proto::text::clean(text.as_bytes())),
        Err(_) => bare(text),
    }
}

/// The same of what is no URL that is understood: a password may have characters that belong to no URL.
fn bare(text: &str) -> String {
    let text = muster_proto::text::clean(text.as_bytes());
    let text = match text.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            // Nobody knows whether it is a user's or a query's.
            Some((user, _)) if user.contains('?') => format!("{scheme}://…"),
            Some((_, rest)) => format!("{scheme}://…@{rest}"),
            None => text,
        },
        None => text,
    };
    without_query(text)
}

fn without_query(text: String) -> String {
    match text.split_once('?') {
        Some((text, _)) => format!("{text}?…"),
        None => text,
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_query(format!("{}{}", self.origin(), self.target)))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &str) -> String {
        let url = Url::parse(text).unwrap();
        format!("{}{}", url.origin(), url.target)
    }

    #[test]
    fn urls_are_taken_apart() {
        assert_eq!(
            whole(" HTTP://Images.example/a.raw.zst#x "),
            "http://Images.example:80/a.raw.zst"
        );
        assert_eq!(
            whole("https://[fd00::1]:8443?a=b/c"),
            "https://[fd00::1]:8443/?a=b/c"
        );
        let names = |url| Url::parse(url).unwrap().file_names().map(Cow::into_owned);
        assert_eq!(names("http://h/a/b.raw?x=/y"), ["b.raw", "b.raw"]);
        assert_eq!(
            names("http://h/a%2Fb%2B%25.raw"),
            ["a%2Fb%2B%25.raw", "a/b+%.raw"]
        );
        for text in [
            "ftp://h/x",
            "file:///dev/zero",
            "oci://h/x",
            "/x",
            "http://",
            "http://h:x/",
            "http://h/a b",
            "http://h/ü",
        ] {
            Url::parse(text).unwrap_err();
        }
        assert!(matches!(
            Url::parse("http://u:p@h/"),
            Err(UrlError::Credentials(_))
        ));
    }

    #[test]
    fn a_schemes_own_port_is_no_part_of_the_header_host() {
        for (url, host) in [
            ("https://s3.example/a.raw?X-Amz-Signature=1", "s3.example"),
            ("http://h:80/a", "h"),
            ("http://h:443/a", "h:443"),
            ("https://[fd00::1]/a", "[fd00::1]"),
            ("https://h:8443/a", "h:8443"),
        ] {
            assert_eq!(Url::parse(url).unwrap().host_header(), host, "{url}");
        }
    }

    #[test]
    fn no_secret_of_a_url_is_shown() {
        let url = Url::parse("https://h/a.raw?X-Signature=5ec7e7").unwrap();
        let refused = Url::parse("https://me:5ec7e7@h/a.raw").unwrap_err();
        for text in [
            url.to_string(),
            format!("{url:?}"),
            refused.to_string(),
            format!("{refused:?}"),
        ] {
            assert!(!text.contains("5ec7e7"), "{text}");
        }
        assert_eq!(url.to_string(), "https://h:443/a.raw?…");
        for text in [
            "https://me:5ec/7e7@h/a.raw",
            "https://me:p?5ec7e7@h/a.raw",
            "ftp://me:5ec7e7@h/a.raw",
            "https://5ec@7e7@h/a.raw",
            "https://h:99999/a.raw?sig=5ec@7e7",
        ] {
            let refused = Url::parse(text).unwrap_err().to_string();
            for said in [refused, shown(text)] {
                assert!(!said.contains("5ec") && !said.contains("7e7"), "{said}");
            }
        }
        assert_eq!(shown("https://h/a@b.raw?x"), "https://h/a@b.raw?…");
    }

    #[test]
    fn redirects_lead_where_they_say() {
        let from = Url::parse("https://h/a/b?c=d/e").unwrap();
        for (location, leads) in [
            ("http://g/x", "http://g:80/x"),
            ("//g:1/x", "https://g:1/x"),
            ("/x?y=http://z", "https://h:443/x?y=http://z"),
            ("x", "https://h:443/a/x"),
            ("x?y=http://z", "https://h:443/a/x?y=http://z"),
            ("?q", "https://h:443/a/b?q"),
        ] {
            let url = from.join(location).unwrap();
            assert_eq!(format!("{}{}", url.origin(), url.target), leads);
        }
    }

    proptest! {
        #[test]
        fn every_url_can_be_requested(text in "(https?://[a-z0-9.]{0,4})?[ -~é]{0,24}", location in "[ -~é]{0,12}") {
            if let Ok(url) = Url::parse(&text) {
                prop_assert_eq!(&Url::parse(&format!("{}{}", url.origin(), url.target)).unwrap(), &url);
                for url in [Some(url.clone()), url.join(&location).ok()].into_iter().flatten() {
                    for target in [url.target.clone(), format!("{}{}", url.origin(), url.target)] {
                        let request = hyper::Request::get(target).header("host", url.authority());
                        prop_assert!(request.body(()).is_ok(), "{}", url.target);
                    }
                }
            }
        }
    }
}
