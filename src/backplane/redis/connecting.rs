//! How a connection to Redis is made, in a time that is bounded as a whole.
//!
//! Left to itself, the crate `redis` waits as long as it may connect for each answer to what it says first,
//! and goes on to the next when one has not come. So it is told to say nothing, and who this is, and which
//! database is meant, is said here.

use std::time::{Duration, Instant};

use redis::{
    Client, Cmd, Connection, IntoConnectionInfo, RedisConnectionInfo, RedisError, RedisResult, cmd,
};

/// Where Redis is, and who this is to it.
pub(super) struct Address {
    client: Client,
    login: RedisConnectionInfo,
}

impl Address {
    pub(super) fn parse(url: &str) -> RedisResult<Self> {
        let info = url.into_connection_info()?;
        let login = info.redis_settings().clone();
        let silent = RedisConnectionInfo::default().set_skip_set_lib_name();
        let client = Client::open(info.set_redis_settings(silent))?;
        Ok(Self { client, login })
    }

    /// A connection that can be used, by then. Before it is, its answers are to be bounded.
    ///
    /// Looking up the name of a host is not part of it, and if that has several addresses, each may take as long.
    pub(super) fn connect(&self, deadline: Instant) -> RedisResult<Connection> {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut connection = self.client.get_connection_with_timeout(left)?;
        let mut say = |command: Cmd| {
            bound(
                &connection,
                deadline.saturating_duration_since(Instant::now()),
            )?;
            command.query::<()>(&mut connection)
        };
        if let Some(password) = self.login.password() {
            let user = self.login.username();
            let auth = |user: Option<&str>| cmd("AUTH").arg(user).arg(password).take();
            match say(auth(user)) {
                // Before version 6 there are no users.
                Err(error) if user.is_some() && is_too_many(&error) => say(auth(None))?,
                said => said?,
            }
        }
        if self.login.db() != 0 {
            say(cmd("SELECT").arg(self.login.db()).take())?;
        }
        Ok(connection)
    }
}

fn is_too_many(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    detail.contains("wrong number of arguments")
}

/// From now on, each answer may take this long; so may what is sent.
pub(super) fn bound(connection: &Connection, time: Duration) -> RedisResult<()> {
    connection.set_read_timeout(Some(time))?;
    connection.set_write_timeout(Some(time))
}
