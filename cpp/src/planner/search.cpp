#include "planner/search.hpp"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "planner/cost.hpp"
#include "planner/label_bounds.hpp"

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::size_t clock_interval = 16;  // expansions between two checks of the time limit
constexpr std::size_t expansion_operations = 10'000;

struct StateKey {
    std::uint64_t position;  // arrived or not, boundary, node, first node
    std::uint64_t set_key;

    bool operator==(const StateKey&) const = default;
};

struct StateHash {
    std::size_t operator()(const StateKey& key) const {
        return static_cast<std::size_t>(
            (key.position ^ key.set_key * 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u >> 7);
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
        // Every better plan has a maximum of at least the lowest interval's end: below it labels do not differ.
        const Metric& metric = t.metrics.front();
        if (t.tracks.max && metric.decode_max == 0 && !root.intervals.front().empty()) {
            floor_ = root.intervals.front().front().low / metric.prefill_max;
        }
    }

    SearchResult run(const TimeLimit& time_limit, std::size_t max_labels) {
        start();
        SearchResult result;
        for (std::size_t step = 1; !heap_.empty(); ++step) {
            std::pop_heap(heap_.begin(), heap_.end(), comes_later);
            const Open open = heap_.back();
            heap_.pop_back();
            if (open.bound >= incumbent_.cutoff()) break;
            if (pool_[open.label].is_dominated) continue;
            if (pool_.size() >= max_labels) result.stopped_by = "labels";
            if (time_limit.must_end_after(expansion_operations) ||
                (step % clock_interval == 0 && time_limit.is_reached()))
                result.stopped_by = stopped_by(time_limit);
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
            if (!t_.can_start[n] || t_.start_vertex[n] < 0) continue;
            Label label;
            label.is_arrived = true;
            label.vertex = t_.start_vertex[n];
            label.first = n;
            label.prefill.sum = t_.tracks.sum ? t_.ingress[n] + t_.ingress_delay[n] : 0;
            label.prefill.max = t_.tracks.max ? std::max(floor_, t_.ingress[n]) : 0;
            if (t_.is_free) label.set_key = t_.node_key[n];
            label.visited = with_node(t_, 0, n);
            push(label);
        }
    }

    void expand(std::int32_t index) {
        const Label label = pool_[index];  // a copy, because the pool reallocates as it grows
        if (label.is_arrived) {
            compute(label, index);
        } else {
            send(label, index);
        }
    }

    // Appends every stage that fits the node, at every weight level that no other one makes useless.
    void compute(const Label& parent, std::int32_t index) {
        const int node = t_.node_of[parent.vertex];
        const int last = longest_stop(t_, node, parent.boundary);
        for (int stop = parent.boundary + 1; stop <= last; ++stop) {
            for (int w = 0; w < t_.weight_levels; ++w) {
                if (is_useful(node, parent.boundary, stop, w)) compute_at(parent, index, stop, w);
            }
        }
    }

    void compute_at(const Label& parent, std::int32_t index, int stop, int weight_level) {
        Label child = parent;
        child.parent = index;
        child.boundary = stop;
        child.is_arrived = false;
        child.level = weight_level;
        if (const double* losses = t_.stage_losses(weight_level, parent.boundary)) {
            child.loss += losses[stop];
            const double loss_to_go = least_.to_go_departed[state(t_, child.visited, stop, child.vertex)];
            if (child.loss + loss_to_go > t_.loss_limit) return;
        }
        const int lane = t_.lane(t_.node_of[parent.vertex], weight_level);
        work(t_.prefill, t_.tracks, lane, parent.boundary, stop, child.prefill);
        if (t_.generates) work(t_.token, t_.token_tracks, lane, parent.boundary, stop, child.token);
        if (stop == t_.layers) {
            finish(child);
        } else {
            push(child);
        }
    }

    // Whether a stage fits the node at a weight level, and none at another one is as fast with as little loss.
    bool is_useful(int node, int start, int stop, int weight_level) const {
        const int lane = t_.lane(node, weight_level);
        if (stop > t_.max_stop[t_.lane_boundary(lane, start)]) return false;
        for (int w = 0; w < t_.weight_levels; ++w) {
            const int other = t_.lane(node, w);
            if (w == weight_level || stop > t_.max_stop[t_.lane_boundary(other, start)]) continue;
            const auto slower = [&](const PhaseTables& phase, const std::vector<double>& compute) {
                return busy(phase, compute, other, start, stop) - busy(phase, compute, lane, start, stop);
            };
            const double more[] = {
                t_.stage_losses(w, start)[stop] - t_.stage_losses(weight_level, start)[stop],
                slower(t_.prefill, t_.prefill.compute), slower(t_.prefill, t_.prefill.compute_max()),
                t_.generates ? slower(t_.token, t_.token.compute) : 0};
            const bool is_no_worse = std::all_of(more, more + 4, [](double x) { return x <= 0; });
            // Of equal ones the first is useful.
            if (is_no_worse &&
                (w < weight_level || std::any_of(more, more + 4, [](double x) { return x < 0; })))
                return false;
        }
        return true;
    }

    // The seconds of a stage, by prefix sums of its lane.
    double busy(const PhaseTables& phase, const std::vector<double>& compute, int lane, int start,
                int stop) const {
        return compute[t_.lane_boundary(lane, stop)] - compute[t_.lane_boundary(lane, start)] +
               phase.stage[lane];
    }

    void work(const PhaseTables& phase, Tracks tracks, int lane, int start, int stop, Load& load) const {
        if (tracks.sum) load.sum += busy(phase, phase.compute, lane, start, stop);
        if (!tracks.max) return;
        load.open += busy(phase, phase.compute_max(), lane, start, stop);
        load.max = std::max(load.max, load.open);
    }

    // Sends the last stage's activation to every node that may follow, at every level.
    void send(const Label& parent, std::int32_t index) {
        const int source = t_.node_of[parent.vertex];
        for (int e = t_.neighbour_start[parent.vertex]; e < t_.neighbour_start[parent.vertex + 1]; ++e) {
            const int destination = t_.node_of[t_.neighbour[e]];
            if (is_blocked(t_, parent.visited, destination) ||
                (t_.is_free && has_stage_on(parent, destination)))
                continue;
            Label child = parent;
            child.parent = index;
            child.vertex = t_.neighbour[e];
            child.is_arrived = true;
            child.visited = with_node(t_, parent.visited, destination);
            if (t_.is_free) child.set_key += t_.node_key[destination];
            if (t_.generates) {
                const double longer = parent.return_s + latency_back(destination, source);
                child.return_s = std::min(longer, t_.most_return_s[parent.first]);
            }
            for (int k = 0; k < t_.levels; ++k) send_at(parent, e, k, child);
        }
    }

    void send_at(const Label& parent, int link, int level, Label& child) {
        const int cut = t_.boundary_level(parent.boundary, level);
        child.loss = parent.loss + t_.loss[cut];
        const double loss_to_go =
            least_.to_go_arrived[state(t_, child.visited, child.boundary, child.vertex)];
        if (child.loss + loss_to_go > t_.loss_limit) return;
        child.level = level;
        child.prefill = parent.prefill;
        transfer(t_.prefill, t_.tracks, t_.node_of[parent.vertex], link, cut, child.prefill);
        if (t_.generates) {
            child.token = parent.token;
            transfer(t_.token, t_.token_tracks, t_.node_of[parent.vertex], link, cut, child.token);
        }
        push(child);
    }

    void transfer(const PhaseTables& phase, Tracks tracks, int source, int link, int cut, Load& load) const {
        const double encode = phase.encode[cut];
        const double link_s =
            link_occupancy_s(problem_, phase.compressed[cut], t_.bandwidth[link], t_.latency[link]);
        if (tracks.sum) load.sum += encode + link_s + t_.propagates * t_.latency[link] + phase.decode[cut];
        if (!tracks.max) return;
        close(load, t_.half_duplex[source], encode, link_s);
        load.open = phase.decode[cut];
    }

    // The last stage is complete: its occupancy is final.
    static void close(Load& load, bool half_duplex, double encode, double link) {
        const double stage = half_duplex ? load.open + encode + link : load.open + encode;
        load.max = std::max(load.max, stage);
        if (!half_duplex) load.max = std::max(load.max, link);
    }

    // All layers are placed: the plan's objective is known.
    void finish(Label& label) {
        const int n = t_.node_of[label.vertex];
        if (!t_.can_end[n]) return;
        for (int required : t_.required) {
            if (!has_stage_on(label, required)) return;
        }
        if (t_.tracks.sum) label.prefill.sum += t_.egress[n] + t_.egress_delay[n];
        if (t_.tracks.max) close(label.prefill, t_.half_duplex[n], 0, t_.egress[n]);
        double round_trip = label.token.sum;
        if (t_.generates && n != label.first) {
            const double back = std::min(latency_back(n, label.first), label.return_s);
            if (back == infinity) return;
            round_trip += back;
        }
        const Weights& w = t_.weights;
        const double objective = w.prefill_sum * label.prefill.sum + w.prefill_max * label.prefill.max +
                                 std::max(w.round_trip * round_trip, w.bottleneck * label.token.max);
        if (!incumbent_.is_beaten_by(objective)) return;
        incumbent_.objective_s = objective;
        incumbent_.stages = stages_of(label);
    }

    // Of a token over one link, infinite without the link.
    double latency_back(int source, int destination) const {
        const std::size_t link = static_cast<std::size_t>(source) * t_.nodes + destination;
        if (problem_.bandwidth_bytes_per_s[link] <= 0) return infinity;
        return t_.token_tracks.sum ? problem_.latency_s[link] : 0;
    }

    // Whether a label's chain has a stage on a node, the last one included.
    bool has_stage_on(const Label& label, int node) const {
        if (t_.keys_are_exact) return (label.set_key >> node & 1) != 0;
        for (const Label* at = &label;; at = &pool_[at->parent]) {
            if (t_.node_of[at->vertex] == node) return true;
            if (at->parent < 0) return false;
        }
    }

    // Whether two chains of the same key have the same nodes.
    bool is_of_same_nodes(const Label& a, const Label& b) const {
        if (!t_.is_free || t_.keys_are_exact) return true;
        for (const Label* at = &a;; at = &pool_[at->parent]) {
            if (!has_stage_on(b, t_.node_of[at->vertex])) return false;
            if (at->parent < 0) break;
        }
        return stages_before(a) == stages_before(b);
    }

    int stages_before(const Label& label) const {
        int stages = 0;
        for (const Label* at = &label; at->parent >= 0; at = &pool_[at->parent]) stages += at->is_arrived;
        return stages;
    }

    std::vector<Stage> stages_of(const Label& last) const {
        std::vector<Stage> stages;
        const Label* end = &last;
        int level = no_level;
        while (true) {
            const Label* arrival = &pool_[end->parent];
            stages.push_back({t_.node_of[end->vertex], arrival->boundary, end->boundary, level,
                              t_.weight_level(end->level)});
            level = arrival->level;
            if (arrival->parent < 0) break;
            end = &pool_[arrival->parent];
        }
        std::reverse(stages.begin(), stages.end());
        return stages;
    }

    double bound(const Label& label) const {
        const std::size_t at = state(t_, label.visited, label.boundary, label.vertex);
        double most = 0;
        for (const LabelBounds& metric : bounds_) most = std::max(most, metric.bound(label, at));
        return most;
    }

    Growth growth(const Label& label) const {
        if (label.is_arrived) return {infinity, infinity};
        const int at = t_.boundary_node(label.boundary, t_.node_of[label.vertex]);
        return {t_.prefill.growth[at], t_.generates ? t_.token.growth[at] : 0};
    }

    StateKey key(const Label& label) const {
        std::uint64_t position = label.is_arrived;
        position = position * (t_.layers + 1) + label.boundary;
        position = position * t_.nodes + t_.node_of[label.vertex];
        position = position * t_.nodes + (t_.keeps_first ? label.first : 0);
        return {position, label.set_key};
    }

    // Keeps a label unless its bound reaches the cutoff or one of the same state dominates it, and drops those that it
    // dominates.
    void push(Label& label) {
        label.bound = bound(label);
        if (label.parent >= 0) label.bound = std::max(label.bound, pool_[label.parent].bound);
        if (label.bound >= incumbent_.cutoff()) return;
        const Growth grows = growth(label);
        std::int32_t& head = states_.try_emplace(key(label), -1).first->second;
        for (std::int32_t i = head; i >= 0; i = pool_[i].next) {
            if (dominates(pool_[i], label, grows) && is_of_same_nodes(pool_[i], label)) return;
        }
        std::int32_t* link = &head;
        while (*link >= 0) {
            Label& other = pool_[*link];
            if (dominates(label, other, grows) && is_of_same_nodes(other, label)) {
                other.is_dominated = true;
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
                    const TimeLimit& time_limit, std::size_t max_labels) {
    return Search(problem, t, least, root).run(time_limit, max_labels);
}

}  // namespace orbitsplit::planner
