#include "planner/search.hpp"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "planner/label_bounds.hpp"

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::size_t clock_interval = 256;  // expansions between two looks at the clock

struct StateKey {
    std::uint64_t place;  // arrived or not, boundary, node, first node
    std::uint64_t used;

    bool operator==(const StateKey&) const = default;
};

struct StateHash {
    std::size_t operator()(const StateKey& key) const {
        return static_cast<std::size_t>((key.place ^ key.used * 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u >>
                                        7);
    }
};

struct Open {
    double bound;
    std::int32_t layers_left;
    std::int32_t label;
};

// Smallest bound first, then the label with fewer layers left, then the older one.
bool comes_later(const Open& a, const Open& b) {
    if (a.bound != b.bound) return a.bound > b.bound;
    if (a.layers_left != b.layers_left) return a.layers_left > b.layers_left;
    return a.label > b.label;
}

class Search {
  public:
    Search(const Problem& problem, const Tables& t, const Relaxation& least, Root& root)
        : problem_(problem), t_(t), least_(least), incumbent_(root.incumbent) {
        for (std::size_t a = 0; a < t.metrics.size(); ++a) {
            bounds_.emplace_back(t, t.metrics[a], root.intervals[a]);
        }
        // No better plan has a smaller maximum than the lowest interval allows: below it all labels are equal.
        const Metric& lap = t.metrics.front();
        if (t.tracks.max && lap.decode_max == 0 && !root.intervals.front().empty()) {
            floor_ = root.intervals.front().front().low / lap.prefill_max;
        }
    }

    SearchResult run(const Clock& clock, std::size_t max_labels) {
        start();
        SearchResult result;
        for (std::size_t step = 1; !heap_.empty(); ++step) {
            std::pop_heap(heap_.begin(), heap_.end(), comes_later);
            const Open open = heap_.back();
            heap_.pop_back();
            if (open.bound >= incumbent_.cutoff()) break;
            if (pool_[open.label].is_dead) continue;
            if (pool_.size() >= max_labels) result.stopped_by = "labels";
            if (step % clock_interval == 0 && clock.is_over()) result.stopped_by = "time";
            if (!result.stopped_by.empty()) {
                result.lower_bound_s = open.bound;
                break;
            }
            expand(open.label);
        }
        result.is_complete = result.stopped_by.empty();
        result.labels = pool_.size();
        return result;
    }

  private:
    void start() {
        for (int n = 0; n < t_.nodes; ++n) {
            if (!t_.can_start[n]) continue;
            Label label;
            label.is_arrived = true;
            label.node = label.first = n;
            label.prefill.sum = t_.tracks.sum ? t_.ingress[n] + t_.ingress_delay[n] : 0;
            label.prefill.max = t_.tracks.max ? std::max(floor_, t_.ingress[n]) : 0;
            if (t_.is_free) label.used = std::uint64_t{1} << n;
            label.past = with_node(t_, 0, n);
            push(label);
        }
    }

    void expand(std::int32_t index) {
        const Label label = pool_[index];  // the pool moves while it grows
        if (label.is_arrived) {
            compute(label, index);
        } else {
            send(label, index);
        }
    }

    // Appends every stage that fits the node.
    void compute(const Label& from, std::int32_t index) {
        const int last = t_.max_stop[t_.node_boundary(from.node, from.boundary)];
        for (int stop = from.boundary + 1; stop <= last; ++stop) {
            Label to = from;
            to.parent = index;
            to.boundary = stop;
            to.is_arrived = false;
            work(t_.prefill, t_.tracks, from, stop, to.prefill);
            if (t_.generates) work(t_.token, t_.token_tracks, from, stop, to.token);
            if (stop == t_.layers) {
                finish(to);
            } else {
                push(to);
            }
        }
    }

    void work(const PhaseTables& phase, Tracks tracks, const Label& from, int stop, Load& load) const {
        const double busy = phase.compute[t_.node_boundary(from.node, stop)] -
                            phase.compute[t_.node_boundary(from.node, from.boundary)];
        if (tracks.sum) load.sum += busy;
        if (!tracks.max) return;
        load.open += busy;
        load.max = std::max(load.max, load.open);
    }

    // Sends the last stage's activation to every node that may follow, at every level.
    void send(const Label& from, std::int32_t index) {
        for (int e = t_.neighbour_start[from.node]; e < t_.neighbour_start[from.node + 1]; ++e) {
            const int node = t_.neighbour[e];
            if (is_blocked(t_, from.past, node) || (t_.is_free && (from.used >> node & 1) != 0)) continue;
            Label to = from;
            to.parent = index;
            to.node = node;
            to.is_arrived = true;
            to.past = with_node(t_, from.past, node);
            if (t_.is_free) to.used |= std::uint64_t{1} << node;
            if (t_.needs_back) {
                const int back = t_.pair(node, from.node);
                to.back_s += t_.bandwidth[back] > 0 ? (t_.token_tracks.sum ? t_.latency[back] : 0) : infinity;
            }
            for (int k = 0; k < t_.levels; ++k) send_at(from, k, to);
        }
    }

    void send_at(const Label& from, int level, Label& to) {
        const int cut = t_.boundary_level(from.boundary, level);
        to.loss = from.loss + t_.loss[cut];
        if (to.loss + least_.arrive[state(t_, to.past, to.boundary, to.node)] > t_.loss_limit) return;
        to.level = level;
        to.prefill = from.prefill;
        transfer(t_.prefill, t_.tracks, from.node, to.node, cut, to.prefill);
        if (t_.generates) {
            to.token = from.token;
            transfer(t_.token, t_.token_tracks, from.node, to.node, cut, to.token);
        }
        push(to);
    }

    void transfer(const PhaseTables& phase, Tracks tracks, int from, int to, int cut, Load& load) const {
        const int pair = t_.pair(from, to);
        const double encode = phase.encode[cut];
        const double link =
            link_occupancy_s(problem_, phase.packed[cut], t_.bandwidth[pair], t_.latency[pair]);
        if (tracks.sum) load.sum += encode + link + t_.propagates * t_.latency[pair] + phase.decode[cut];
        if (!tracks.max) return;
        close(load, t_.half_duplex[from], encode, link);
        load.open = phase.decode[cut];
    }

    // The last stage leaves: its occupancy is final.
    static void close(Load& load, bool half_duplex, double encode, double link) {
        const double stage = half_duplex ? load.open + encode + link : load.open + encode;
        load.max = std::max(load.max, stage);
        if (!half_duplex) load.max = std::max(load.max, link);
    }

    // Every layer is placed: the plan's objective is known.
    void finish(Label& label) {
        const int n = label.node;
        if (!t_.can_end[n] || (label.used & t_.required) != t_.required) return;
        if (t_.tracks.sum) label.prefill.sum += t_.egress[n] + t_.egress_delay[n];
        if (t_.tracks.max) close(label.prefill, t_.half_duplex[n], 0, t_.egress[n]);
        double lap = label.token.sum;
        if (t_.generates && n != label.first) {
            const int direct = t_.pair(n, label.first);
            const double back = t_.bandwidth[direct] > 0 ? t_.latency[direct] : label.back_s;
            if (back == infinity) return;
            lap += back;
        }
        const Weights& w = t_.weights;
        const double objective = w.prefill_sum * label.prefill.sum + w.prefill_max * label.prefill.max +
                                 std::max(w.lap * lap, w.busiest * label.token.max);
        if (!incumbent_.is_beaten_by(objective)) return;
        incumbent_.objective_s = objective;
        incumbent_.stages = stages_of(label);
    }

    std::vector<Stage> stages_of(const Label& last) const {
        std::vector<Stage> stages;
        const Label* end = &last;
        int level = no_level;
        while (true) {
            const Label* arrival = &pool_[end->parent];
            stages.push_back({end->node, arrival->boundary, end->boundary, level});
            level = arrival->level;
            if (arrival->parent < 0) break;
            end = &pool_[arrival->parent];
        }
        std::reverse(stages.begin(), stages.end());
        return stages;
    }

    double bound(const Label& label) const {
        const std::size_t at = state(t_, label.past, label.boundary, label.node);
        double most = 0;
        for (const LabelBounds& metric : bounds_) most = std::max(most, metric.bound(label, at));
        return most;
    }

    Growth growth(const Label& label) const {
        if (label.is_arrived) return {infinity, infinity};
        const int at = t_.boundary_node(label.boundary, label.node);
        return {t_.prefill.growth[at], t_.generates ? t_.token.growth[at] : 0};
    }

    StateKey key(const Label& label) const {
        std::uint64_t place = label.is_arrived;
        place = place * (t_.layers + 1) + label.boundary;
        place = place * t_.nodes + label.node;
        place = place * t_.nodes + (t_.keeps_first ? label.first : 0);
        return {place, label.used};
    }

    // Keeps a label unless its bound or one of the same state rules it out, and drops those it rules out.
    void push(Label& label) {
        label.bound = bound(label);
        if (label.parent >= 0) label.bound = std::max(label.bound, pool_[label.parent].bound);
        if (label.bound >= incumbent_.cutoff()) return;
        const Growth grows = growth(label);
        std::int32_t& head = states_.try_emplace(key(label), -1).first->second;
        for (std::int32_t i = head; i >= 0; i = pool_[i].next) {
            if (dominates(pool_[i], label, grows)) return;
        }
        std::int32_t* link = &head;
        while (*link >= 0) {
            Label& other = pool_[*link];
            if (dominates(label, other, grows)) {
                other.is_dead = true;
                *link = other.next;
            } else {
                link = &other.next;
            }
        }
        label.next = head;
        head = static_cast<std::int32_t>(pool_.size());
        pool_.push_back(label);
        heap_.push_back({label.bound, t_.layers - label.boundary, head});
        std::push_heap(heap_.begin(), heap_.end(), comes_later);
    }

    const Problem& problem_;
    const Tables& t_;
    const Relaxation& least_;
    Incumbent& incumbent_;
    double floor_ = 0;
    std::vector<LabelBounds> bounds_;
    std::vector<Label> pool_;
    std::vector<Open> heap_;
    std::unordered_map<StateKey, std::int32_t, StateHash> states_;
};

}  // namespace

SearchResult search(const Problem& problem, const Tables& t, const Relaxation& least, Root& root,
                    const Clock& clock, std::size_t max_labels) {
    return Search(problem, t, least, root).run(clock, max_labels);
}

}  // namespace orbitsplit::planner
