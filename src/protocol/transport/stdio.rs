//! The stdio transport: a connection over two pipes, for an editor that starts this program as a child process.

use super::framing::{Framing, MessageReader};
use crate::{
    actors::Runtime,
    protocol::{Api, CloseReason, ConnectionOptions, connection},
};
use futures_util::{sink, stream};
use std::{io, sync::OnceLock, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio_util::sync::CancellationToken;

/// How long calls may go on after the end of the input: enough for `echo … | souffleur stdio`, short if the editor is gone.
const LINGER: Duration = Duration::from_secs(1);

/// Serves one connection until it closes.
pub async fn serve_stdio<R, W>(runtime: Runtime, input: R, output: W, stop: CancellationToken) -> CloseReason
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let api = Api::new(runtime);
    let framing = OnceLock::new();
    let reader = MessageReader::new(BufReader::new(input), api.limits().message_bytes, &framing);
    let incoming = std::pin::pin!(stream::unfold(reader, async |mut reader| Some((reader.next().await?, reader))));
    let outgoing = std::pin::pin!(sink::unfold(output, async |mut output, text: String| {
        // Nothing is written before the first message was read, and that sets the framing.
        let bytes = framing.get().unwrap_or(&Framing::Lines).frame(&text);
        output.write_all(&bytes).await?;
        output.flush().await?;
        Ok::<_, io::Error>(output)
    }));
    connection::serve(incoming, outgoing, &api, ConnectionOptions { linger: LINGER, watch_parent: true, stop }).await
}

/// Takes stdin and stdout for the protocol. Descriptor 1 then refers to stderr, so that a stray print from a library does
/// not corrupt the stream of messages.
///
/// # Errors
///
/// A descriptor can't be duplicated.
pub fn take_standard_streams() -> io::Result<(tokio::fs::File, tokio::fs::File)> {
    let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok((tokio::fs::File::from_std(input.into()), tokio::fs::File::from_std(output.into())))
}
