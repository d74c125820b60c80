//! A handler that does nothing but let connections into rooms.

use super::handler::{Accept, Handler};
use crate::http::{Request, Response};
use crate::hub::{Membership, Room, Rooms};
use crate::message::Message;
use crate::peer::Peer;

impl<R: Room> Rooms<R> {
    /// A handler that lets every connection into one room: `choose` gives the room's name and the value
    /// for [`Room::join`], or answers the request with a response. All messages go to the room, and a
    /// connection that ends leaves it.
    ///
    /// A connection is there for its room only, so it is closed when it has no place in it: with 1013
    /// (try again later) if the room refuses it, with 1000 once the room has removed it or is closed. A
    /// room that wants another code [closes](Peer::close) the peer itself, in the same call.
    ///
    /// ```no_run
    /// # use framemill::*;
    /// # fn serve<R: Room<Join = ()>>(rooms: Rooms<R>) -> framemill::Result<()> {
    /// let handler = rooms.handler(|request| Ok((request.path().to_owned(), ())));
    /// Server::bind("127.0.0.1:9001")?.run(handler)
    /// # }
    /// ```
    pub fn handler(
        self,
        choose: impl Fn(&Request) -> Result<(String, R::Join), Response> + Send + Sync + 'static,
    ) -> impl Handler<Session = Membership<R>> {
        IntoRooms {
            rooms: self,
            choose,
        }
    }
}

struct IntoRooms<R: Room, F> {
    rooms: Rooms<R>,
    choose: F,
}

impl<R, F> Handler for IntoRooms<R, F>
where
    R: Room,
    F: Fn(&Request) -> Result<(String, R::Join), Response> + Send + Sync + 'static,
{
    type Session = Membership<R>;

    fn open(&self, request: &Request, peer: &Peer) -> Result<Accept<Self::Session>, Response> {
        let (name, join) = (self.choose)(request)?;
        Ok(Accept::new(self.rooms.join_as(&name, peer, join, true)))
    }

    fn message(&self, session: &mut Self::Session, _: &Peer, message: Message) {
        session.message(message);
    }
}
