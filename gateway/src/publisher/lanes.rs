//! What a publisher has on its way and waiting: a lane for each partition. Pure, but for whom a request belongs to.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use herald_proto::{RequestId, telemetry::Span, wire::MAX_COMMANDS};
use tokio::time::Instant;

use crate::inbox::Inbox;

/// A request on its way.
#[derive(Debug)]
pub(super) struct Job {
    /// The command, as JSON; empty once it is sent.
    pub(super) body: Vec<u8>,
    /// Lasts until it is confirmed.
    pub(super) span: Span,
    pub(super) id: RequestId,
    pub(super) inbox: Arc<Inbox>,
}

/// What is on its way and waiting.
pub(super) struct Lanes {
    /// One for each partition.
    all: Vec<Lane>,
    /// Those that have a bundle to send.
    ready: VecDeque<u16>,
    /// Requests that wait or are under way.
    count: usize,
    /// How many there may be.
    capacity: usize,
    /// The last bundle's number.
    last: u64,
}

/// What one partition has on its way and waiting.
#[derive(Default)]
struct Lane {
    under_way: Option<UnderWay>,
    waiting: VecDeque<Job>,
}

/// A bundle that is not confirmed yet.
pub(super) struct UnderWay {
    number: u64,
    pub(super) jobs: Vec<Job>,
    pub(super) sent_at: Instant,
}

/// A bundle to be sent.
pub(super) struct Outgoing {
    pub(super) partition: u16,
    pub(super) number: u64,
    /// The commands, as JSON.
    pub(super) commands: Vec<Vec<u8>>,
}

/// A bundle is not extended past this size, in bytes: well below what NATS takes in a message.
const MAX_BYTES: usize = 256 * 1024;
/// No more is begun at once past this size, in bytes: nothing is read while it is written.
const AT_ONCE: usize = 1024 * 1024;
/// How long a confirmation may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What went with a connection.
pub(super) struct Lost {
    pub(super) under_way: Vec<UnderWay>,
    /// Those that had not been sent, of each partition.
    pub(super) waiting: Vec<Vec<Job>>,
}

impl Lanes {
    pub(super) fn new(partitions: u16, capacity: usize) -> Self {
        let all = (0..partitions).map(|_| Lane::default()).collect();
        Self { all, ready: VecDeque::new(), count: 0, capacity, last: 0 }
    }

    /// Whether there is no place.
    pub(super) fn is_full(&self) -> bool {
        self.count >= self.capacity
    }

    /// Lets a request wait.
    ///
    /// # Errors
    /// The request, if there is no place.
    pub(super) fn push(&mut self, partition: u16, job: Job) -> Result<(), Job> {
        let is_full = self.is_full();
        let lane = self.all.get_mut(usize::from(partition));
        let (Some(lane), false) = (lane, is_full) else { return Err(job) };
        self.count += 1;
        if lane.under_way.is_none() && lane.waiting.is_empty() {
            self.ready.push_back(partition);
        }
        lane.waiting.push_back(job);
        Ok(())
    }

    /// The next bundles of partitions that have none on their way, as many as are sent at once: from `now` on they are.
    /// And whether there are more.
    pub(super) fn send(&mut self, now: Instant, max_bytes: usize) -> (Vec<Outgoing>, bool) {
        let (mut outgoing, mut bytes) = (Vec::new(), 0);
        while bytes < AT_ONCE
            && let Some(partition) = self.ready.pop_front()
        {
            let Some(lane) = self.all.get_mut(usize::from(partition)) else { continue };
            self.last += 1;
            let mut jobs = lane.next(max_bytes.min(MAX_BYTES));
            let commands: Vec<_> =
                jobs.iter_mut().map(|job| std::mem::take(&mut job.body)).collect();
            bytes += commands.iter().map(Vec::len).sum::<usize>();
            lane.under_way = Some(UnderWay { number: self.last, jobs, sent_at: now });
            outgoing.push(Outgoing { partition, number: self.last, commands });
        }
        (outgoing, !self.ready.is_empty())
    }

    /// The bundle that an answer is for, if it is still waited for: the partition's next can be sent.
    pub(super) fn answered(&mut self, partition: u16, number: u64) -> Option<UnderWay> {
        let lane = self.all.get_mut(usize::from(partition))?;
        let bundle = lane.under_way.take_if(|bundle| bundle.number == number)?;
        self.count -= bundle.jobs.len();
        if !lane.waiting.is_empty() {
            self.ready.push_back(partition);
        }
        Some(bundle)
    }

    /// The bundles that were not answered in time.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<UnderWay> {
        let is_overdue = |bundle: &&UnderWay| now.duration_since(bundle.sent_at) >= PATIENCE;
        let under_way = (0..).zip(&self.all).filter_map(|(partition, lane)| {
            let bundle = lane.under_way.as_ref().filter(is_overdue)?;
            Some((partition, bundle.number))
        });
        let overdue: Vec<(u16, u64)> = under_way.collect();
        overdue
            .into_iter()
            .filter_map(|(partition, number)| self.answered(partition, number))
            .collect()
    }

    /// Everything: with the connection all of it is lost.
    pub(super) fn lost(&mut self) -> Lost {
        (self.count, self.ready) = (0, VecDeque::new());
        let under_way = self.all.iter_mut().filter_map(|lane| lane.under_way.take()).collect();
        let waiting = self.all.iter_mut().map(|lane| lane.waiting.drain(..).collect());
        let waiting = waiting.filter(|jobs: &Vec<Job>| !jobs.is_empty()).collect();
        Lost { under_way, waiting }
    }
}

impl Lane {
    /// Takes what makes a bundle of so many bytes; a request that is larger is one by itself.
    fn next(&mut self, max_bytes: usize) -> Vec<Job> {
        let mut bytes = 0;
        let fits = |job: &&Job| {
            bytes += job.body.len();
            bytes <= max_bytes
        };
        let count = self.waiting.iter().take(MAX_COMMANDS).take_while(fits).count();
        self.waiting.drain(..count.max(1).min(self.waiting.len())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    const CAPACITY: usize = 5;

    fn job(id: usize) -> Job {
        let inbox = Arc::new(Inbox::new(1, Arc::new(Metrics::default())));
        let id = RequestId::new(id.to_string()).unwrap();
        Job { body: vec![b'x'; MAX_BYTES / 2], span: Span::none(), id, inbox }
    }

    fn lanes(jobs: &[(u16, usize)]) -> Lanes {
        let mut lanes = Lanes::new(2, CAPACITY);
        for (partition, id) in jobs {
            lanes.push(*partition, job(*id)).unwrap();
        }
        lanes
    }

    /// The partition, the number and the requests of each bundle that is sent.
    fn sent(lanes: &mut Lanes, now: Instant) -> Vec<(u16, u64, Vec<String>)> {
        let (outgoing, _) = lanes.send(now, usize::MAX);
        let sent = outgoing.into_iter().map(|bundle| {
            let under_way = lanes.all[usize::from(bundle.partition)].under_way.as_ref().unwrap();
            assert_eq!(under_way.number, bundle.number);
            assert_eq!(under_way.jobs.len(), bundle.commands.len());
            (bundle.partition, bundle.number, ids(&under_way.jobs))
        });
        sent.collect()
    }

    fn ids(jobs: &[Job]) -> Vec<String> {
        jobs.iter().map(|job| job.id.to_string()).collect()
    }

    fn of(ids: &[usize]) -> Vec<String> {
        ids.iter().map(usize::to_string).collect()
    }

    #[test]
    fn each_partition_has_one_bundle_on_its_way_and_what_comes_meanwhile_goes_next_in_order() {
        let (mut lanes, now) = (lanes(&[(0, 1), (1, 2), (0, 3)]), Instant::now());
        assert_eq!(sent(&mut lanes, now), [(0, 1, of(&[1, 3])), (1, 2, of(&[2]))]);
        lanes.push(0, job(4)).unwrap();
        lanes.push(0, job(5)).unwrap();
        assert_eq!(sent(&mut lanes, now), []);
        assert_eq!(ids(&lanes.answered(0, 1).unwrap().jobs), of(&[1, 3]));
        assert_eq!(sent(&mut lanes, now), [(0, 3, of(&[4, 5]))]);
        assert!(lanes.answered(0, 3).is_some());
        assert_eq!(sent(&mut lanes, now), []);
    }

    #[test]
    fn a_bundle_is_not_larger_than_a_message_may_be() {
        let mut lanes = lanes(&[(0, 1), (0, 2), (0, 3)]);
        assert_eq!(sent(&mut lanes, Instant::now()), [(0, 1, of(&[1, 2]))]);
        lanes.answered(0, 1).unwrap();
        assert_eq!(sent(&mut lanes, Instant::now()), [(0, 2, of(&[3]))]);
    }

    #[test]
    fn what_is_sent_at_once_is_bounded_and_the_rest_is_sent_next() {
        let mut lanes = Lanes::new(9, 100);
        for partition in 0..9 {
            for id in 0..2 {
                lanes.push(partition, job(id)).unwrap();
            }
        }
        let now = Instant::now();
        let (sent, more) = lanes.send(now, usize::MAX);
        assert_eq!((sent.len(), more), (AT_ONCE / MAX_BYTES, true));
        // No message is larger than the broker takes.
        let (sent, more) = lanes.send(now, MAX_BYTES / 2);
        assert_eq!((sent.len(), more), (5, false));
        assert!(sent.iter().all(|bundle| bundle.commands.len() == 1));
        assert_eq!(sent[4].partition, 8);
    }

    #[test]
    fn a_request_without_a_place_is_refused_until_others_have_left() {
        let mut lanes = lanes(&[(0, 1), (0, 2), (0, 3), (1, 4), (1, 5)]);
        assert_eq!(lanes.push(1, job(6)).unwrap_err().id.to_string(), "6");
        sent(&mut lanes, Instant::now());
        assert!(lanes.push(1, job(6)).is_err(), "it is not confirmed yet");
        lanes.answered(1, 2).unwrap();
        lanes.push(1, job(6)).unwrap();
        lanes.push(0, job(7)).unwrap();
        assert!(lanes.push(0, job(8)).is_err());
        lanes.lost();
        for id in 0..CAPACITY {
            lanes.push(0, job(id)).unwrap();
        }
        assert!(lanes.push(0, job(8)).is_err());
    }

    #[test]
    fn an_answer_that_comes_too_late_is_not_taken_for_another_bundles() {
        let (mut lanes, now) = (lanes(&[(0, 1), (1, 2)]), Instant::now());
        sent(&mut lanes, now);
        lanes.push(0, job(3)).unwrap();
        assert_eq!(lanes.overdue(now + PATIENCE - Duration::from_millis(1)).len(), 0);
        lanes.answered(1, 2).unwrap();
        let overdue = lanes.overdue(now + PATIENCE);
        assert_eq!(overdue.iter().map(|bundle| ids(&bundle.jobs)).collect::<Vec<_>>(), [of(&[1])]);
        assert_eq!(sent(&mut lanes, now + PATIENCE), [(0, 3, of(&[3]))]);
        assert!(lanes.answered(0, 1).is_none() && lanes.answered(1, 3).is_none());
        assert_eq!(ids(&lanes.answered(0, 3).unwrap().jobs), of(&[3]));
    }

    #[test]
    fn all_that_is_on_its_way_is_lost_with_the_connection() {
        let mut lanes = lanes(&[(0, 1)]);
        sent(&mut lanes, Instant::now());
        lanes.push(0, job(2)).unwrap();
        lanes.push(1, job(3)).unwrap();
        let lost = lanes.lost();
        assert_eq!(ids(&lost.under_way[0].jobs), of(&[1]));
        let waiting: Vec<_> = lost.waiting.iter().map(|jobs| ids(jobs)).collect();
        assert_eq!(waiting, [of(&[2]), of(&[3])]);
        assert_eq!(sent(&mut lanes, Instant::now()), []);
        lanes.push(1, job(4)).unwrap();
        assert_eq!(sent(&mut lanes, Instant::now()), [(1, 2, of(&[4]))]);
        assert!(lanes.answered(0, 1).is_none());
    }
}
