//! A peer at the other end of two pipes: an editor's child process.

use super::framing::{Framing, Reader};
use crate::{
    actors::Runtime,
    protocol::{Api, Closed, Rules, connection},
};
use futures_util::{sink, stream};
use std::{io, sync::OnceLock, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio_util::sync::CancellationToken;

/// After the input's end, calls that are nearly done still answer: long enough for a pipe, too short for an orphan.
const LINGER: Duration = Duration::from_secs(1);

/// Serves the peer until it goes. `input` is only read when there is room for the answer.
pub async fn serve_stdio<R, W>(runtime: Runtime, input: R, output: W, stop: CancellationToken) -> Closed
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let api = Api::new(runtime);
    let framing = OnceLock::new();
    let reader = Reader::new(BufReader::new(input), api.limits().message_bytes, &framing);
    let incoming = std::pin::pin!(stream::unfold(reader, async |mut reader| Some((reader.next().await?, reader))));
    let outgoing = std::pin::pin!(sink::unfold(output, async |mut output, text: String| {
        // Nothing is written before the first message has come, and it came in some framing.
        let bytes = framing.get().unwrap_or(&Framing::Lines).frame(&text);
        output.write_all(&bytes).await?;
        output.flush().await?;
        Ok::<_, io::Error>(output)
    }));
    connection::serve(incoming, outgoing, &api, Rules { linger: LINGER, watch_parent: true, stop }).await
}

/// Takes the process's own input and output for the protocol. From here on descriptor 1 is the standard error, so that a
/// stray print of some library lands there and not between two messages.
pub fn take_standard_streams() -> io::Result<(tokio::fs::File, tokio::fs::File)> {
    let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok((tokio::fs::File::from_std(input.into()), tokio::fs::File::from_std(output.into())))
}
