//! What a fuzzer does to the reading of routes and rules: anything can come, nothing may panic, and what is understood is
//! written as it was read.

use crate::dataplane::netlink::message::Builder;
use crate::dataplane::netlink::message::Message;
use crate::dataplane::routing::rtnetlink::News;
use crate::dataplane::routing::rtnetlink::Route;
use crate::dataplane::routing::rtnetlink::Rule;
use crate::model::address::Family;

/// Reads messages as if the kernel had sent them.
pub fn read_messages(mut input: &[u8]) {
    while let Some(message) = Message::take(&mut input) {
        News::read(&message);
        for family in Family::ALL {
            if let Some(rule) = Rule::read(family, message.payload) {
                let written = payload(&rule.header(), |message| rule.write(message));
                assert_eq!(Rule::read(family, &written), Some(rule), "{rule}");
            }
            if let Some(route) = Route::read(family, message.payload) {
                let written = payload(&route.header(0), |message| route.write(message));
                assert_eq!(Route::read(family, &written), Some(route), "{route}");
            }
        }
    }
}

fn payload(header: &[u8], write: impl Fn(&mut Builder<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut message = Builder::new(&mut bytes, 0, 0, 0, header);
    write(&mut message);
    message.end();
    Message::take(&mut bytes.as_slice()).map(|message| message.payload.to_vec()).unwrap_or_default()
}
