//! A link's connection, over memory.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex},
    task::{consume_budget, yield_now},
};

use super::*;

/// Has a message whenever it is read; lets other tasks have their turn, as tokio's own do.
struct Endless;

impl AsyncRead for Endless {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(pin!(consume_budget()).poll(context));
        buffer.put_slice(b"MSG a 1 2\r\nhi\r\n");
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Looks(Notify);

impl Receive for Looks {
    fn subscribe(&self, _: &mut Vec<u8>) {}
    fn receive(&self, _: &Message<'_>) {}
    fn quiet(&self) {
        self.0.notify_one();
    }
    fn lost(&self) {}
}

#[tokio::test]
async fn what_is_meant_for_one_connection_is_sent_on_no_other() {
    const MESSAGE: &[u8] = b"PUB a 2\r\nhi\r\n";
    let (link, looks) = (Link::new("test"), Looks::default());
    let is_sent = |connect| link.send_on(connect, 1, |out| out.extend(MESSAGE));
    for connect in 1..=2 {
        let (mut server, client) = duplex(1024);
        let stream = Box::new(client);
        let opened = Opened { stream, read: BytesMut::new(), max_payload: 9 };
        let mut said = vec![0; b"PING\r\n".len() + MESSAGE.len()];
        let talk = async {
            server.read_exact(&mut said[..6]).await.unwrap();
            assert!(!is_sent(connect), "it is not confirmed yet");
            server.write_all(b"PONG\r\n").await.unwrap();
            while link.connects() < connect {
                yield_now().await;
            }
            assert!(!is_sent(connect - 1) && is_sent(connect) && !is_sent(connect + 1));
            server.read_exact(&mut said[6..]).await.unwrap();
        };
        tokio::select! {
            error = link.serve(opened, &looks) => panic!("{error}"),
            talked = timeout(Duration::from_secs(30), talk) => talked.expect("it says nothing"),
        }
        assert_eq!(said, [b"PING\r\n", MESSAGE].concat());
        link.end();
        assert!(!is_sent(connect), "it is gone");
    }
}

#[tokio::test]
async fn a_receiver_has_its_look_however_much_comes_in() {
    let (link, looks) = (Link::new("test"), Looks::default());
    let opened = Opened { stream: Box::new(Endless), read: BytesMut::new(), max_payload: 9 };
    let looked = async {
        for _ in 0..3 {
            looks.0.notified().await;
        }
    };
    tokio::select! {
        error = link.serve(opened, &looks) => panic!("{error}"),
        looked = timeout(Duration::from_secs(30), looked) => looked.expect("it never looks"),
    }
}
