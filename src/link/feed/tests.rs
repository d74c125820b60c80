use super::*;
use crate::backplane::Post;

fn offset(epoch: u64, number: u64) -> Offset {
    Offset {
        epoch,
        number,
        tag: 0,
    }
}

fn kept(epoch: u64, number: u64, sequence: u64) -> Kept {
    Kept {
        post: Post::new("t", Message::text(sequence.to_string())),
        offset: offset(epoch, number),
        node: 1,
        sequence,
        except: None,
        age: Duration::ZERO,
    }
}

/// Adopts this, and gives what those who are live get.
fn adopt(feed: &mut Feed, last: Offset, kept: Vec<Kept>) -> FeedUpdate {
    let topic = "t".into();
    let mut tail = Tail { topic, last, kept };
    let mut update = feed.rejoin(&mut tail);
    for kept in tail.kept {
        update.messages.extend(feed.take_in(kept).messages);
    }
    feed.catch_up(last);
    update
}

fn texts(messages: impl Iterator<Item = (Offset, Message)>) -> Vec<String> {
    messages.map(|(_, m)| m.to_string()).collect()
}

#[test]
fn whoever_comes_back_gets_what_it_missed_or_is_told() {
    let mut feed = Feed::new(History::last(3), Some(9));
    let replay = feed.replay(Since::After(offset(9, 0)));
    assert_eq!(texts(feed.messages("t", &replay)), ["live 9-0 t\n"]);
    for n in 1..=5 {
        feed.append("t", &Message::text(n.to_string()));
    }
    let mut get = |since| {
        let replay = feed.replay(since);
        texts(feed.messages("t", &replay)).join("|")
    };
    let (m3, m4, m5) = ("msg 9-3 t\n3", "msg 9-4 t\n4", "msg 9-5 t\n5");
    let all = format!("{m3}|{m4}|{m5}|live 9-5 t\n");
    assert_eq!(get(Since::Start), all);
    assert_eq!(get(Since::After(offset(9, 2))), all);
    assert_eq!(
        get(Since::After(offset(9, 4))),
        format!("{m5}|live 9-5 t\n")
    );
    for now in [Since::Now, Since::After(offset(9, 5))] {
        assert_eq!(get(now), "live 9-5 t\n");
    }
    let gap = format!("gap 9-2 t\n|{all}");
    let lost = [
        (9, 1),
        (9, 0),
        (9, 6),
        (8, 4),
        (10, 4),
        (0, 0),
        (9, u64::MAX),
    ];
    for (epoch, number) in lost {
        assert_eq!(
            get(Since::After(offset(epoch, number))),
            gap,
            "{epoch}-{number}"
        );
    }
}

#[test]
fn what_is_missed_is_adopted_once() {
    let mut feed = Feed::new(History::last(10), None);
    assert!(feed.follow(kept(5, 1, 1)).unwrap().messages.is_empty());
    let update = adopt(&mut feed, offset(5, 2), vec![kept(5, 1, 1), kept(5, 2, 2)]);
    assert_eq!((update.messages.len(), update.gap), (2, None));
    assert_eq!(feed.follow(kept(5, 3, 3)).unwrap().messages.len(), 1);
    assert!(feed.follow(kept(5, 3, 3)).unwrap().messages.is_empty());
    assert!(feed.follow(kept(5, 5, 5)).is_none(), "4 is missing");
    let update = adopt(&mut feed, offset(5, 5), vec![kept(5, 4, 4), kept(5, 5, 5)]);
    assert_eq!((update.messages.len(), update.gap), (2, None));
    // Some of it is gone.
    let update = adopt(&mut feed, offset(5, 9), vec![kept(5, 8, 8), kept(5, 9, 9)]);
    assert_eq!(update.gap, Some(Message::text("gap 5-7 t\n")));
    assert_eq!(update.messages.len(), 2);
    // What is there under the number of the latest is something else.
    let seen = Offset {
        tag: 7,
        ..offset(5, 8)
    };
    let update = adopt(
        &mut feed,
        offset(5, 10),
        vec![kept(5, 9, 10), kept(5, 10, 11)],
    );
    assert_eq!(update.gap, Some(Message::text("gap 5-8 t\n")));
    assert_eq!(update.messages.len(), 2);
    let replay = feed.replay(Since::After(seen));
    assert!(replay.gap.is_some(), "8 may have been another as well");
    let replay = feed.replay(Since::After(offset(5, 8)));
    assert!(replay.gap.is_none(), "who has been told of it");
    // Redis has lost everything, and was sent 11 again.
    let again = vec![kept(5, 11, 12), kept(6, 1, 11), kept(6, 2, 12)];
    let update = adopt(&mut feed, offset(6, 2), again);
    assert_eq!(update.gap, Some(Message::text("gap 6-0 t\n")));
    assert_eq!(update.messages.len(), 1);
    assert_eq!(feed.last(), offset(6, 2));
}

/// Also by a node that never saw it.
#[test]
fn whoever_saw_what_was_lost_is_told() {
    let mut feed = Feed::new(History::last(10), None);
    adopt(&mut feed, offset(5, 2), vec![kept(5, 1, 1), kept(5, 2, 2)]);
    let [one, seen] = [1, 2].map(|number| feed.tagged(number));
    assert!(seen.tag != 0 && seen.tag != one.tag);
    assert_eq!(feed.replay(Since::After(seen)).gap, None);
    let mut other = Feed::new(History::last(10), None);
    let others = vec![kept(5, 1, 1), kept(5, 2, 3), kept(5, 3, 4)];
    for kept in [others.clone(), Vec::new()] {
        adopt(&mut other, offset(5, 3), kept);
        let replay = other.replay(Since::After(seen));
        assert_eq!(replay.gap, Some(Gap::Unknown));
        assert_eq!(other.replay(Since::After(one)).gap, None);
    }
    adopt(&mut feed, offset(5, 3), others[1..].to_vec());
    for lost in [one, seen] {
        assert!(feed.replay(Since::After(lost)).gap.is_some());
    }
    assert_eq!(feed.replay(Since::After(offset(5, 3))).gap, None);
}

#[test]
fn the_first_message_of_all_is_no_gap() {
    let mut feed = Feed::new(History::last(10), None);
    adopt(&mut feed, Offset::default(), Vec::new());
    assert!(feed.follow(kept(7, 1, 1)).is_none(), "another epoch");
    let update = adopt(&mut feed, offset(7, 1), vec![kept(7, 1, 1)]);
    assert_eq!((update.messages.len(), update.gap), (1, None));
    assert_eq!(feed.replay(Since::After(Offset::default())).gap, None);
}

/// By a node that knows nothing now; others may not know that yet, or what comes then.
#[test]
fn whoever_saw_what_is_lost_is_not_sent_it_again() {
    let mut feed = Feed::new(History::last(10), None);
    adopt(&mut feed, offset(5, 1), vec![kept(5, 1, 1)]);
    let mut other = Feed::new(History::last(10), None);
    adopt(&mut other, offset(5, 1), vec![kept(5, 1, 1)]);
    let update = adopt(&mut feed, Offset::default(), Vec::new());
    assert_eq!(update.gap, Some(Message::text("gap 0-0-1 t\n")));
    let told: Offset = "0-0-1".parse().unwrap();
    let mut get = |offset: Offset| {
        let replay = feed.replay(Since::After(offset));
        texts(feed.messages("t", &replay)).join("|")
    };
    assert_eq!(get(offset(5, 1)), "gap 0-0-1 t\n|live 0-0-1 t\n");
    assert_eq!(get(told), "live 0-0-1 t\n");
    assert_eq!(get(Offset::default()), "live 0-0 t\n");
    assert!(other.replay(Since::After(told)).gap.is_some());
    let update = adopt(&mut feed, offset(6, 1), vec![kept(6, 1, 2)]);
    assert_eq!((update.messages.len(), update.gap), (1, None));
}

#[test]
fn old_messages_go() {
    let keep = History::last(10).no_older_than(Duration::ZERO);
    let mut feed = Feed::new(keep, Some(1));
    feed.append("t", &Message::text("x"));
    std::thread::sleep(Duration::from_millis(1));
    assert_eq!(
        feed.replay(Since::After(offset(1, 0))).gap,
        Some(Gap::TooOld)
    );
    assert_eq!(feed.replay(Since::After(offset(1, 1))).gap, None);
    assert!(feed.is_over(Duration::ZERO));
    let for_ever = History::last(10).no_older_than(Duration::MAX);
    let mut feed = Feed::new(for_ever, Some(1));
    feed.append("t", &Message::text("x"));
    assert!(!feed.is_over(Duration::from_secs(60)));
}
