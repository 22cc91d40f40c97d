//! Two framings of messages in a byte stream: LSP's `Content-Length` headers, or one message per line. The first bytes of
//! the input select the framing of the whole connection.

use crate::protocol::FrameError;
use std::sync::OnceLock;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// Longest header block of one message. `Content-Length` and `Content-Type` take about 100 bytes.
const HEADER_BYTES_MAX: usize = 8 << 10;
/// Bytes of white space and byte-order mark allowed before the first message.
const LEADING_BYTES_MAX: usize = 1 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Headers,
    Lines,
}

impl Framing {
    pub(super) fn frame(self, text: &str) -> Vec<u8> {
        match self {
            Self::Headers => format!("Content-Length: {}\r\n\r\n{text}", text.len()).into_bytes(),
            Self::Lines => format!("{text}\n").into_bytes(),
        }
    }
}

/// Reads messages of at most `limit` bytes. Memory grows with the bytes received, not with the announced length.
pub(super) struct MessageReader<'a, R> {
    input: R,
    limit: usize,
    framing: &'a OnceLock<Framing>,
    /// What is left of a message that was refused as too large; skipped before the next message is read.
    skip: Skip,
}

#[derive(PartialEq, Eq)]
enum Skip {
    Nothing,
    Bytes(u64),
    Line,
}

/// An I/O error ends the connection, `None` is the end of the input, and a `FrameError` is reported to the peer.
type ReadResult = std::io::Result<Option<Result<String, FrameError>>>;

impl<'a, R: AsyncBufRead + Unpin> MessageReader<'a, R> {
    /// The reader sets `framing` before it returns the first message.
    pub(super) fn new(input: R, limit: usize, framing: &'a OnceLock<Framing>) -> Self {
        Self { input, limit, framing, skip: Skip::Nothing }
    }

    /// The next message; `None` at the end of the input and after an I/O error.
    pub(super) async fn next(&mut self) -> Option<Result<String, FrameError>> {
        let read = match self.framing.get() {
            Some(Framing::Headers) => self.read_with_headers().await,
            Some(Framing::Lines) => self.read_line().await,
            None => {
                let framing = self.detect().await.ok()??;
                self.framing.set(framing).ok()?;
                match framing {
                    Framing::Headers => self.read_with_headers().await,
                    Framing::Lines => self.read_line().await,
                }
            }
        };
        read.ok()?
    }

    /// A header starts with a letter. Anything else is read as lines.
    async fn detect(&mut self) -> std::io::Result<Option<Framing>> {
        for _ in 0..LEADING_BYTES_MAX {
            match self.input.fill_buf().await?.first() {
                None => return Ok(None),
                Some(byte) if byte.is_ascii_whitespace() || [0xEF, 0xBB, 0xBF].contains(byte) => self.input.consume(1),
                Some(byte) if byte.is_ascii_alphabetic() => return Ok(Some(Framing::Headers)),
                Some(_) => break,
            }
        }
        Ok(Some(Framing::Lines))
    }

    async fn read_line(&mut self) -> ReadResult {
        if self.skip == Skip::Line {
            self.skip_line().await?;
            self.skip = Skip::Nothing;
        }
        loop {
            let mut line = Vec::new();
            // The longest line ends with `\r\n`.
            let max = self.limit as u64 + 2;
            let read = (&mut self.input).take(max).read_until(b'\n', &mut line).await?;
            if read == 0 {
                return Ok(None);
            }
            let ended = line.last() == Some(&b'\n');
            let cut = !ended && read as u64 == max;
            let text = line.trim_ascii();
            if cut || text.len() > self.limit {
                self.skip = if ended { Skip::Nothing } else { Skip::Line };
                return Ok(Some(Err(FrameError::TooLarge { limit: self.limit })));
            }
            if !text.is_empty() {
                return Ok(Some(utf8(text.to_vec())));
            }
        }
    }

    async fn skip_line(&mut self) -> std::io::Result<()> {
        loop {
            let buffer = self.input.fill_buf().await?;
            match buffer.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    self.input.consume(end + 1);
                    return Ok(());
                }
                None if buffer.is_empty() => return Ok(()),
                None => {
                    let length = buffer.len();
                    self.input.consume(length);
                }
            }
        }
    }

    async fn read_with_headers(&mut self) -> ReadResult {
        if let Skip::Bytes(mut left) = self.skip {
            while left > 0 {
                let length = self.input.fill_buf().await?.len();
                if length == 0 {
                    return Ok(None);
                }
                let length = length.min(usize::try_from(left).unwrap_or(usize::MAX));
                self.input.consume(length);
                left -= length as u64;
                self.skip = Skip::Bytes(left);
            }
            self.skip = Skip::Nothing;
        }
        let length = match self.read_content_length().await? {
            Ok(None) => return Ok(None),
            Ok(Some(length)) => length,
            Err(malformed) => return Ok(Some(Err(malformed))),
        };
        if length > self.limit as u64 {
            // Refused before the body is read, because it may never arrive in full.
            self.skip = Skip::Bytes(length);
            return Ok(Some(Err(FrameError::TooLarge { limit: self.limit })));
        }
        let mut body = Vec::new();
        (&mut self.input).take(length).read_to_end(&mut body).await?;
        if (body.len() as u64) < length {
            return Ok(Some(Err(FrameError::Truncated)));
        }
        Ok(Some(utf8(body)))
    }

    /// Reads a header block. Returns its content length, or `None` at the end of the input.
    async fn read_content_length(&mut self) -> std::io::Result<Result<Option<u64>, FrameError>> {
        let (mut length, mut read) = (None, 0);
        loop {
            let mut line = Vec::new();
            let room = (HEADER_BYTES_MAX - read) as u64;
            read += (&mut self.input).take(room).read_until(b'\n', &mut line).await?;
            if line.is_empty() && read == 0 {
                return Ok(Ok(None));
            }
            if line.last() != Some(&b'\n') {
                let why = format!("headers have more than {HEADER_BYTES_MAX} bytes");
                return Ok(Err(if read >= HEADER_BYTES_MAX { FrameError::BadHeader(why) } else { FrameError::Truncated }));
            }
            let text = line.trim_ascii();
            if text.is_empty() {
                let missing = FrameError::BadHeader("no Content-Length".into());
                return Ok(length.map(Some).ok_or(missing));
            }
            match parse_header_line(text, length) {
                Ok(found) => length = found,
                Err(why) => return Ok(Err(FrameError::BadHeader(why.into()))),
            }
        }
    }
}

/// Parses one header line. `length` is the content length from the lines before; returns it, or that of this line.
fn parse_header_line(line: &[u8], length: Option<u64>) -> Result<Option<u64>, &'static str> {
    let line = std::str::from_utf8(line).map_err(|_| "a header is not UTF-8")?;
    let (name, value) = line.split_once(':').ok_or("a header has no colon")?;
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err("a header name may only contain letters, digits and -");
    }
    let value = value.trim_ascii();
    if name.eq_ignore_ascii_case("content-type") {
        let charset = value.split(';').skip(1).find_map(|part| part.trim_ascii().strip_prefix("charset="));
        let utf8 = charset.is_none_or(|charset| ["utf-8", "utf8"].contains(&&*charset.trim_matches('"').to_ascii_lowercase()));
        return if utf8 { Ok(length) } else { Err("the charset is not utf-8") };
    }
    if !name.eq_ignore_ascii_case("content-length") {
        return Ok(length);
    }
    if length.is_some() {
        return Err("Content-Length is given twice");
    }
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("Content-Length is not a number");
    }
    value.parse().map(Some).map_err(|_| "Content-Length is too large a number")
}

fn utf8(bytes: Vec<u8>) -> Result<String, FrameError> {
    String::from_utf8(bytes).map_err(|_| FrameError::NotUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 32;

    async fn messages(input: &[u8]) -> (Vec<Result<String, FrameError>>, Option<Framing>) {
        let framing = OnceLock::new();
        // A buffer of one byte tests every position of a read boundary.
        let mut reader = MessageReader::new(tokio::io::BufReader::with_capacity(1, input), LIMIT, &framing);
        let mut read = Vec::new();
        while let Some(message) = reader.next().await {
            let bad = matches!(message, Err(FrameError::BadHeader(_) | FrameError::Truncated));
            read.push(message);
            if bad {
                break;
            }
        }
        drop(reader);
        (read, framing.into_inner())
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    #[test]
    fn the_framing_is_detected_from_the_first_bytes() {
        let (read, framing) = block_on(messages(b"\n {\"a\":1}\r\n\n[2]\n"));
        assert_eq!((read, framing), (vec![Ok("{\"a\":1}".into()), Ok("[2]".into())], Some(Framing::Lines)));
        let (read, framing) =
            block_on(messages("content-length: 2\r\nX-Y: z\r\n\r\n{é}Content-Type: a/b; charset=utf8\nContent-Length: 2\n\n[]".as_bytes()));
        assert_eq!(framing, Some(Framing::Headers));
        assert_eq!(read[0], Err(FrameError::NotUtf8), "Content-Length counts bytes, and this one splits a character");
        let (read, _) =
            block_on(messages("Content-Length: 4\r\n\r\n{é}Content-Type: a/b; charset=utf8\nContent-Length: 2\n\n[]".as_bytes()));
        assert_eq!(read, [Ok("{é}".into()), Ok("[]".into())]);
        assert_eq!(block_on(messages(b" \n ")), (vec![], None));
    }

    #[test]
    fn reading_continues_after_a_line_that_is_too_long_or_not_utf8() {
        let long = [b"{".as_slice(), &[b'x'; 200], b"\n{}\n\xff\n{}"].concat();
        let too_large = Err(FrameError::TooLarge { limit: LIMIT });
        assert_eq!(block_on(messages(&long)).0, [too_large, Ok("{}".into()), Err(FrameError::NotUtf8), Ok("{}".into())]);
        let fits = [b'7'; LIMIT];
        assert_eq!(block_on(messages(&[&fits[..], b"\r\n"].concat())).0, [Ok("7".repeat(LIMIT))]);
    }

    #[test]
    fn white_space_does_not_split_a_line_that_is_too_long() {
        let too_large = || Err(FrameError::TooLarge { limit: LIMIT });
        let indented = [b"[1]\n  ".as_slice(), &[b'7'; LIMIT], b"[2]\n[3]\n"].concat();
        assert_eq!(block_on(messages(&indented)).0, [Ok("[1]".into()), too_large(), Ok("[3]".into())]);
        let blank = [b"[1]\n".as_slice(), &[b' '; 2 * LIMIT], b"\n[3]\n"].concat();
        assert_eq!(block_on(messages(&blank)).0, [Ok("[1]".into()), too_large(), Ok("[3]".into())]);
    }

    #[test]
    fn reading_continues_after_a_body_that_is_too_large() {
        let input = [b"Content-Length: 100\r\n\r\n".as_slice(), &[b'x'; 100], b"Content-Length: 2\r\n\r\n{}"].concat();
        assert_eq!(block_on(messages(&input)).0, [Err(FrameError::TooLarge { limit: LIMIT }), Ok("{}".into())]);
        let announced = block_on(messages(b"Content-Length: 1099511627776\r\n\r\n{}"));
        assert_eq!(announced.0, [Err(FrameError::TooLarge { limit: LIMIT })]);
    }

    #[test]
    fn a_malformed_header_is_reported() {
        for input in [
            "Content-Length\r\n\r\n{}",
            "Content-Length: \r\n\r\n{}",
            "Content-Length: -1\r\n\r\n{}",
            "Content-Length: +2\r\n\r\n{}",
            "Content-Length: 0x2\r\n\r\n{}",
            "Content-Length: 99999999999999999999999\r\n\r\n{}",
            "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
            "X: y\r\n\r\n{}",
            "Content-Type: a; charset=latin1\r\nContent-Length: 2\r\n\r\n{}",
            "GET / HTTP/1.1\r\n\r\n",
            "X: y\r\né: 2\r\n\r\n{}",
            "Con tent-Length: 2\r\n\r\n{}",
        ] {
            let read = block_on(messages(input.as_bytes())).0;
            assert!(matches!(read[..], [Err(FrameError::BadHeader(_))]), "{input:?} gives {read:?}");
        }
        let endless = format!("X: {}", "y".repeat(HEADER_BYTES_MAX));
        assert!(matches!(block_on(messages(endless.as_bytes())).0[..], [Err(FrameError::BadHeader(_))]));
    }

    #[test]
    fn an_input_that_ends_inside_a_message_is_reported() {
        for input in ["Content-Length: 9\r\n\r\n{}", "Content-Length: 9\r\n", "Content-Len"] {
            assert_eq!(block_on(messages(input.as_bytes())).0, [Err(FrameError::Truncated)], "{input:?}");
        }
    }
}
