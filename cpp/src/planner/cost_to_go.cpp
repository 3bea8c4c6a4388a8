#include "planner/cost_to_go.hpp"

#include <algorithm>
#include <limits>

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

bool may_end(const Tables& t, const Metric& m, double limit, unsigned visited, int node) {
    if (!t.can_end[node] || (visited & t.required_ng) != t.required_ng) return false;
    return t.half_duplex[node] || m.egress_max[node] <= limit;
}

double best_level(const Tables& t, const Metric& m, const Relaxation& r, int boundary, int source, int link) {
    double best = infinity;
    for (int k = 0; k < t.levels; ++k) {
        const int index = t.boundary_level(boundary, k);
        if (!t.has_level(index)) continue;  // 0 times infinity is no number
        best = std::min(best,
                        transfer_weight(t, m, r.limit, source, link, index) + r.multiplier * t.loss[index]);
    }
    return best;
}

// Operations of a relaxation at one boundary: an upper estimate for the time limit.
std::size_t operations_of_boundary(const Tables& t) {
    return t.neighbour.size() * t.levels +
           static_cast<std::size_t>(t.vertices()) * t.layers * t.weight_levels;
}

// What does not depend on the visited set. With many visited sets the best level of every link at every boundary, and
// the best weight level of every stage, are found once; with a single one they are not, because most are never used.
struct BestChoices {
    std::vector<double> transfers;  // boundaries x links, or empty
    std::vector<double> stages;     // nodes x starts x stops, or empty

    // By stop, nullptr if they were not found.
    const double* stages_from(const Tables& t, int node, int start) const {
        if (stages.empty()) return nullptr;
        const std::size_t row = static_cast<std::size_t>(node) * (t.layers + 1) + start;
        return stages.data() + row * (t.layers + 1);
    }
};

void fill_best_stages(const Tables& t, const Metric& m, const Relaxation& r, int start, BestChoices& best) {
    for (int lane = 0; lane < t.lanes(); ++lane) {
        const int node = lane / t.weight_levels;
        const std::size_t row = (static_cast<std::size_t>(node) * (t.layers + 1) + start) * (t.layers + 1);
        const double* losses = t.stage_losses(lane % t.weight_levels, start);
        for (int stop = start + 1; stop <= t.max_stop[t.lane_boundary(lane, start)]; ++stop) {
            const double weight =
                stage_weight(t, m, r.limit, lane, node, start, stop) + r.multiplier * losses[stop];
            best.stages[row + stop] = std::min(best.stages[row + stop], weight);
        }
    }
}

// If it must end early, so must what asked for it.
BestChoices best_choices(const Tables& t, const Metric& m, const Relaxation& r, const TimeLimit& time_limit) {
    BestChoices best;
    if (t.visited_sets == 1) return best;
    best.transfers.reserve(t.layers * t.neighbour.size());
    if (t.has_weight_levels())
        best.stages.assign(static_cast<std::size_t>(t.nodes) * (t.layers + 1) * (t.layers + 1), infinity);
    for (int i = 0; i < t.layers && !time_limit.must_end_after(operations_of_boundary(t)); ++i) {
        for (int v = 0; v < t.vertices(); ++v) {
            for (int e = t.neighbour_start[v]; e < t.neighbour_start[v + 1]; ++e)
                best.transfers.push_back(best_level(t, m, r, i, t.node_of[v], e));
        }
        if (t.has_weight_levels()) fill_best_stages(t, m, r, i, best);
    }
    return best;
}

// The least of the stages from a boundary with what follows them, `rest` by stop, or `best` if that is less. Apart for
// weights that lose nothing, because this is the innermost loop.
template <bool loses>
double best_of_lane(const Tables& t, const Metric& m, const Relaxation& r, int lane, int node, int start,
                    const double* rest, double best) {
    const int most = t.max_stop[t.lane_boundary(lane, start)];
    [[maybe_unused]] const double* losses = loses ? t.stage_losses(lane % t.weight_levels, start) : nullptr;
    for (int stop = start + 1; stop <= most; ++stop) {
        if (rest[stop] >= best) continue;
        double weight = stage_weight(t, m, r.limit, lane, node, start, stop);
        if constexpr (loses) weight += r.multiplier * losses[stop];
        best = std::min(best, weight + rest[stop]);
    }
    return best;
}

double best_stage(const Tables& t, const Metric& m, const BestChoices& choices, const Relaxation& r,
                  unsigned visited, int start, int vertex) {
    const int node = t.node_of[vertex];
    const double* rest = r.to_go_departed.data() + state(t, visited, 0, vertex);
    double best = infinity;
    if (!t.has_weight_levels()) return best_of_lane<false>(t, m, r, node, node, start, rest, best);
    if (const double* weights = choices.stages_from(t, node, start)) {
        const int most = longest_stop(t, node, start);
        for (int stop = start + 1; stop <= most; ++stop) best = std::min(best, weights[stop] + rest[stop]);
        return best;
    }
    for (int w = 0; w < t.weight_levels; ++w)
        best = best_of_lane<true>(t, m, r, t.lane(node, w), node, start, rest, best);
    return best;
}

double best_transfer(const Tables& t, const Metric& m, const std::vector<double>& transfers,
                     const Relaxation& r, unsigned visited, int boundary, int vertex) {
    double best = infinity;
    const std::size_t row = boundary * t.neighbour.size();
    for (int e = t.neighbour_start[vertex]; e < t.neighbour_start[vertex + 1]; ++e) {
        const int next = t.neighbour[e];
        const int node = t.node_of[next];
        if (is_blocked(t, visited, node)) continue;
        const double rest = r.to_go_arrived[state(t, with_node(t, visited, node), boundary, next)];
        if (rest >= best) continue;
        const double transfer =
            transfers.empty() ? best_level(t, m, r, boundary, t.node_of[vertex], e) : transfers[row + e];
        best = std::min(best, transfer + rest);
    }
    return best;
}

// Whether chains with this visited set can be at a vertex: the set contains the node, and as many stages as the vertex
// remembers.
bool is_state(const Tables& t, unsigned visited, int vertex) {
    const int node = t.node_of[vertex];
    if (t.ng_bit[node] >= 0 && !has_visited(t, visited, node)) return false;
    if (t.count_step == 0) return true;
    const int stages = static_cast<int>(visited >> t.ng_size);
    const int remembered = t.remembered[vertex];
    return remembered < t.k_cycle ? stages == remembered : stages >= remembered;
}

// Returns false if it must end early; checked at every boundary if `operations`, those at a boundary, are not 0.
bool fill_visited(const Tables& t, const Metric& m, const BestChoices& choices, Relaxation& r,
                  unsigned visited, std::size_t operations, const TimeLimit& time_limit) {
    for (int v = 0; v < t.vertices(); ++v) {
        if (is_state(t, visited, v) && may_end(t, m, r.limit, visited, t.node_of[v]))
            r.to_go_departed[state(t, visited, t.layers, v)] = m.egress_sum[t.node_of[v]];
    }
    for (int i = t.layers - 1; i >= 0; --i) {
        if (operations > 0 && time_limit.must_end_after(operations)) return false;
        for (int v = 0; v < t.vertices(); ++v) {
            if (is_state(t, visited, v))
                r.to_go_arrived[state(t, visited, i, v)] = best_stage(t, m, choices, r, visited, i, v);
        }
        for (int v = 0; i > 0 && v < t.vertices(); ++v) {
            if (is_state(t, visited, v))
                r.to_go_departed[state(t, visited, i, v)] =
                    best_transfer(t, m, choices.transfers, r, visited, i, v);
        }
    }
    return true;
}

bool fill(const Tables& t, const Metric& m, Relaxation& r, const TimeLimit& time_limit) {
    const BestChoices choices = best_choices(t, m, r, time_limit);
    const std::size_t operations = operations_of_boundary(t);
    const bool is_long =
        operations > 10'000;  // a check at every boundary would take some percent of a short one
    for (unsigned visited = t.visited_sets; visited-- > t.count_step;) {
        if (!fill_visited(t, m, choices, r, visited, is_long ? operations : 0, time_limit)) return false;
        if (!is_long && time_limit.must_end_after(operations * t.layers)) return false;
    }
    return true;
}

// A forward dynamic programme over the same stages and transfers; with the backward one it bounds the plans through a
// state.
class ForwardPass {
  public:
    ForwardPass(const Tables& t, const Metric& m, const Relaxation& r, const TimeLimit& time_limit)
        : t_(t), m_(m), r_(r), time_limit_(time_limit), choices_(best_choices(t, m, r, time_limit)) {
        arrived_.assign(r.to_go_arrived.size(), infinity);
        departed_ = arrived_;
    }

    std::vector<double> run() {
        for (int n = 0; n < t_.nodes; ++n) {
            const double weight = start_weight(t_, m_, r_.limit, n);
            if (weight < infinity) arrived_[state(t_, with_node(t_, 0, n), 0, t_.start_vertex[n])] = weight;
        }
        std::vector<double> best(t_.vertices(), infinity);
        for (int i = 0; i < t_.layers; ++i) {
            // Stages that end at a boundary were computed before; what arrives there must be sent first.
            for (unsigned visited = 0; visited < t_.visited_sets && i > 0; ++visited) {
                if (must_end()) return std::vector<double>(t_.vertices(), 0);
                for (int v = 0; v < t_.vertices(); ++v) send(visited, i, v);
            }
            for (unsigned visited = 0; visited < t_.visited_sets; ++visited) {
                if (must_end()) return std::vector<double>(t_.vertices(), 0);
                for (int v = 0; v < t_.vertices(); ++v) {
                    const std::size_t at = state(t_, visited, i, v);
                    if (arrived_[at] == infinity) continue;
                    best[v] = std::min(best[v], arrived_[at] + r_.to_go_arrived[at]);
                    compute(visited, i, v);
                }
            }
        }
        return best;
    }

  private:
    bool must_end() const { return time_limit_.must_end_after(operations_of_boundary(t_)); }

    void send(unsigned visited, int boundary, int vertex) {
        const double so_far = departed_[state(t_, visited, boundary, vertex)];
        if (so_far == infinity) return;
        for (int e = t_.neighbour_start[vertex]; e < t_.neighbour_start[vertex + 1]; ++e) {
            const int node = t_.node_of[t_.neighbour[e]];
            if (is_blocked(t_, visited, node)) continue;
            double& least = arrived_[state(t_, with_node(t_, visited, node), boundary, t_.neighbour[e])];
            const double transfer = choices_.transfers.empty()
                                        ? best_level(t_, m_, r_, boundary, t_.node_of[vertex], e)
                                        : choices_.transfers[boundary * t_.neighbour.size() + e];
            least = std::min(least, so_far + transfer);
        }
    }

    void compute(unsigned visited, int start, int vertex) {
        const double so_far = arrived_[state(t_, visited, start, vertex)];
        const int node = t_.node_of[vertex];
        for (int w = 0; w < t_.weight_levels; ++w) {
            const int lane = t_.lane(node, w);
            const double* losses = t_.stage_losses(w, start);
            for (int stop = start + 1; stop <= t_.max_stop[t_.lane_boundary(lane, start)]; ++stop) {
                double& least = departed_[state(t_, visited, stop, vertex)];
                double weight = stage_weight(t_, m_, r_.limit, lane, node, start, stop);
                if (losses != nullptr) weight += r_.multiplier * losses[stop];
                least = std::min(least, so_far + weight);
            }
        }
    }

    const Tables& t_;
    const Metric& m_;
    const Relaxation& r_;
    const TimeLimit& time_limit_;
    const BestChoices choices_;
    std::vector<double> arrived_;  // least cost of getting to a state
    std::vector<double> departed_;
};

}  // namespace

Metric without_time(const Tables& t) {
    Metric m;
    m.prefill_sum = m.latency_sum = 0;
    m.compute_sum.assign(t.lanes() * (t.layers + 1), 0);
    m.compute_max = m.compute_sum;
    m.compressed_sum.assign((t.layers + 1) * t.levels, 0);
    m.compressed_max = m.code_sum = m.encode_max = m.compressed_sum;
    m.open_max.assign(t.layers + 1, 0);
    m.close_max.assign((t.layers + 1) * t.nodes, 0);
    m.ingress_sum.assign(t.nodes, 0);
    m.ingress_max = m.egress_sum = m.egress_max = m.ingress_sum;
    return m;
}

Relaxation relax(const Tables& t, const Metric& metric, double limit, double multiplier,
                 const TimeLimit& time_limit) {
    Relaxation r;
    r.limit = limit;
    r.multiplier = multiplier;
    const std::size_t states = state(t, t.visited_sets, 0, 0);
    r.to_go_departed.assign(states, infinity);
    r.to_go_arrived.assign(states, infinity);
    if (!fill(t, metric, r, time_limit)) {
        r.to_go_departed.assign(states, 0);
        r.to_go_arrived.assign(states, 0);
        return r;
    }
    r.root = infinity;
    for (int n = 0; n < t.nodes; ++n) r.root = std::min(r.root, start_value(t, metric, r, n));
    return r;
}

std::vector<double> bounds_through(const Tables& t, const Metric& metric, const Relaxation& relaxation,
                                   const TimeLimit& time_limit) {
    return ForwardPass(t, metric, relaxation, time_limit).run();
}

Relaxation least_loss(const Tables& t, const TimeLimit& time_limit) {
    return relax(t, without_time(t), infinity, 1, time_limit);
}

}  // namespace orbitsplit::planner
