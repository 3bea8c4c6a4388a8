#include "planner/cost_to_go.hpp"

#include <algorithm>
#include <limits>

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Weight of a stage in the sum, or infinity where the limit forbids it.
inline double stage_weight(const Tables& t, const Metric& m, double limit, int node, int start, int stop) {
    const int first = t.node_boundary(node, start);
    const int last = t.node_boundary(node, stop);
    const double busy = m.compute_max[last] - m.compute_max[first];
    if (busy + m.open_max[start] + m.close_max[t.boundary_node(stop, node)] > limit) return infinity;
    return m.compute_sum[last] - m.compute_sum[first];
}

// Weight of encoding, sending over a link and decoding, or infinity where the limit forbids it.
inline double transfer_weight(const Tables& t, const Metric& m, double limit, int source, int link,
                              int index) {
    const double busy = m.compressed_max[index] * t.s_per_byte[link] + m.latency_max * t.latency[link];
    const double encode = m.encode_max[index];
    if (t.half_duplex[source] ? encode + busy > limit : (encode > limit || busy > limit)) return infinity;
    return m.compressed_sum[index] * t.s_per_byte[link] + m.latency_sum * t.latency[link] + m.code_sum[index];
}

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
    return t.neighbour.size() * t.levels + static_cast<std::size_t>(t.vertices()) * t.layers;
}

// Transfers do not depend on the visited set. With many visited sets the best level of every link at every boundary is
// computed once, by (boundary, link); with a single one it is not, because most are never used.
std::vector<double> best_levels(const Tables& t, const Metric& m, const Relaxation& r,
                                const TimeLimit& time_limit) {
    std::vector<double> best;
    if (t.visited_sets == 1) return best;
    best.reserve(t.layers * t.neighbour.size());
    for (int i = 0; i < t.layers && !time_limit.must_end_after(operations_of_boundary(t)); ++i) {
        for (int v = 0; v < t.vertices(); ++v) {
            for (int e = t.neighbour_start[v]; e < t.neighbour_start[v + 1]; ++e)
                best.push_back(best_level(t, m, r, i, t.node_of[v], e));
        }
    }
    return best;
}

double best_stage(const Tables& t, const Metric& m, const Relaxation& r, unsigned visited, int start,
                  int vertex) {
    double best = infinity;
    const int node = t.node_of[vertex];
    const int most = t.max_stop[t.node_boundary(node, start)];
    const double* rest = r.to_go_departed.data() + state(t, visited, 0, vertex);
    for (int stop = start + 1; stop <= most; ++stop) {
        if (rest[stop] >= best) continue;
        best = std::min(best, stage_weight(t, m, r.limit, node, start, stop) + rest[stop]);
    }
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
bool fill_visited(const Tables& t, const Metric& m, const std::vector<double>& transfers, Relaxation& r,
                  unsigned visited, std::size_t operations, const TimeLimit& time_limit) {
    for (int v = 0; v < t.vertices(); ++v) {
        if (is_state(t, visited, v) && may_end(t, m, r.limit, visited, t.node_of[v]))
            r.to_go_departed[state(t, visited, t.layers, v)] = m.egress_sum[t.node_of[v]];
    }
    for (int i = t.layers - 1; i >= 0; --i) {
        if (operations > 0 && time_limit.must_end_after(operations)) return false;
        for (int v = 0; v < t.vertices(); ++v) {
            if (is_state(t, visited, v))
                r.to_go_arrived[state(t, visited, i, v)] = best_stage(t, m, r, visited, i, v);
        }
        for (int v = 0; i > 0 && v < t.vertices(); ++v) {
            if (is_state(t, visited, v))
                r.to_go_departed[state(t, visited, i, v)] = best_transfer(t, m, transfers, r, visited, i, v);
        }
    }
    return true;
}

bool fill(const Tables& t, const Metric& m, Relaxation& r, const TimeLimit& time_limit) {
    const std::vector<double> transfers = best_levels(t, m, r, time_limit);
    const std::size_t operations = operations_of_boundary(t);
    const bool is_long =
        operations > 10'000;  // a check at every boundary would take some percent of a short one
    for (unsigned visited = t.visited_sets; visited-- > t.count_step;) {
        if (!fill_visited(t, m, transfers, r, visited, is_long ? operations : 0, time_limit)) return false;
        if (!is_long && time_limit.must_end_after(operations * t.layers)) return false;
    }
    return true;
}

// The weight of reaching a chain's first node, or infinity.
double start_weight(const Tables& t, const Metric& m, double limit, int node) {
    if (t.start_vertex[node] < 0 || !t.can_start[node] || m.ingress_max[node] > limit) return infinity;
    return m.ingress_sum[node];
}

double start_value(const Tables& t, const Metric& m, const Relaxation& r, int node) {
    const double weight = start_weight(t, m, r.limit, node);
    if (weight == infinity) return infinity;
    return weight + r.to_go_arrived[state(t, with_node(t, 0, node), 0, t.start_vertex[node])];
}

// A forward dynamic programme over the same stages and transfers; with the backward one it bounds the plans through a
// state.
class ForwardPass {
  public:
    ForwardPass(const Tables& t, const Metric& m, const Relaxation& r, const TimeLimit& time_limit)
        : t_(t), m_(m), r_(r), time_limit_(time_limit), transfers_(best_levels(t, m, r, time_limit)) {
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
            const double transfer = transfers_.empty()
                                        ? best_level(t_, m_, r_, boundary, t_.node_of[vertex], e)
                                        : transfers_[boundary * t_.neighbour.size() + e];
            least = std::min(least, so_far + transfer);
        }
    }

    void compute(unsigned visited, int start, int vertex) {
        const double so_far = arrived_[state(t_, visited, start, vertex)];
        const int node = t_.node_of[vertex];
        for (int stop = start + 1; stop <= t_.max_stop[t_.node_boundary(node, start)]; ++stop) {
            double& least = departed_[state(t_, visited, stop, vertex)];
            least = std::min(least, so_far + stage_weight(t_, m_, r_.limit, node, start, stop));
        }
    }

    const Tables& t_;
    const Metric& m_;
    const Relaxation& r_;
    const TimeLimit& time_limit_;
    const std::vector<double> transfers_;
    std::vector<double> arrived_;  // least cost of getting to a state
    std::vector<double> departed_;
};

// One walk along a relaxation's choices: the diving heuristic with a least-loss relaxation, else a relaxed plan.
class Walker {
  public:
    Walker(const Tables& t, const Metric& m, const Relaxation& r, const Relaxation* least)
        : t_(t), m_(m), r_(r), least_(least), used_(t.nodes, 0) {}

    Walk run() {
        int vertex = pick_start();
        int boundary = 0;
        while (vertex >= 0) {
            const int node = t_.node_of[vertex];
            visited_ = with_node(t_, visited_, node);
            used_[node] = 1;
            const int stop = pick_stop(boundary, vertex);
            if (stop < 0) return {};
            walk_.stages.push_back({node, boundary, stop, no_level});
            boundary = stop;
            if (stop == t_.layers) {
                walk_.is_complete = true;
                return walk_;
            }
            vertex = pick_transfer(boundary, vertex);
        }
        return {};
    }

  private:
    bool fits(double more, double to_come) const {
        return least_ == nullptr || walk_.loss + more + to_come <= t_.loss_limit;
    }
    double least_loss_to_go(unsigned visited, int boundary, int vertex) const {
        return least_ == nullptr ? 0 : least_->to_go_arrived[state(t_, visited, boundary, vertex)];
    }

    int pick_start() const {
        int choice = -1;
        double best = infinity;
        for (int n = 0; n < t_.nodes; ++n) {
            const double value = start_value(t_, m_, r_, n);
            if (value < best && fits(0, least_loss_to_go(with_node(t_, 0, n), 0, t_.start_vertex[n]))) {
                best = value;
                choice = t_.start_vertex[n];
            }
        }
        return choice;
    }

    int pick_stop(int start, int vertex) const {
        int choice = -1;
        double best = infinity;
        const int node = t_.node_of[vertex];
        for (int stop = start + 1; stop <= t_.max_stop[t_.node_boundary(node, start)]; ++stop) {
            const std::size_t next = state(t_, visited_, stop, vertex);
            const double value = stage_weight(t_, m_, r_.limit, node, start, stop) + r_.to_go_departed[next];
            if (value < best && fits(0, least_ == nullptr ? 0 : least_->to_go_departed[next])) {
                best = value;
                choice = stop;
            }
        }
        return choice;
    }

    int pick_transfer(int boundary, int vertex) {
        int choice = -1;
        int level = 0;
        double best = infinity;
        for (int e = t_.neighbour_start[vertex]; e < t_.neighbour_start[vertex + 1]; ++e) {
            const int next = t_.neighbour[e];
            const int node = t_.node_of[next];
            if (is_blocked(t_, visited_, node) || (least_ != nullptr && used_[node])) continue;
            const unsigned visited = with_node(t_, visited_, node);
            for (int k = 0; k < t_.levels; ++k) {
                const int index = t_.boundary_level(boundary, k);
                if (!t_.has_level(index)) continue;
                const double value = transfer_weight(t_, m_, r_.limit, t_.node_of[vertex], e, index) +
                                     r_.multiplier * t_.loss[index] +
                                     r_.to_go_arrived[state(t_, visited, boundary, next)];
                if (value < best && fits(t_.loss[index], least_loss_to_go(visited, boundary, next))) {
                    best = value;
                    choice = next;
                    level = k;
                }
            }
        }
        if (choice >= 0) {
            walk_.loss += t_.loss[t_.boundary_level(boundary, level)];
            walk_.stages.back().level = level;
        }
        return choice;
    }

    const Tables& t_;
    const Metric& m_;
    const Relaxation& r_;
    const Relaxation* least_;
    std::vector<char> used_;
    unsigned visited_ = 0;
    Walk walk_;
};

Metric without_time(const Tables& t) {
    Metric m;
    m.prefill_sum = m.latency_sum = 0;
    m.compute_sum.assign(t.nodes * (t.layers + 1), 0);
    m.compute_max = m.compute_sum;
    m.compressed_sum.assign((t.layers + 1) * t.levels, 0);
    m.compressed_max = m.code_sum = m.encode_max = m.compressed_sum;
    m.open_max.assign(t.layers + 1, 0);
    m.close_max.assign((t.layers + 1) * t.nodes, 0);
    m.ingress_sum.assign(t.nodes, 0);
    m.ingress_max = m.egress_sum = m.egress_max = m.ingress_sum;
    return m;
}

}  // namespace

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

Walk relaxed_optimum(const Tables& t, const Metric& metric, const Relaxation& relaxation) {
    return Walker(t, metric, relaxation, nullptr).run();
}

Walk diving_heuristic(const Tables& t, const Metric& metric, const Relaxation& relaxation,
                      const Relaxation& least) {
    return Walker(t, metric, relaxation, &least).run();
}

Walk diving_heuristic_for_loss(const Tables& t, const Relaxation& least) {
    return diving_heuristic(t, without_time(t), least, least);
}

}  // namespace orbitsplit::planner
