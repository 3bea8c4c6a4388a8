#include "planner/cost_to_go.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "planner/best_choices.hpp"
#include "support/pool.hpp"

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

bool may_end(const Tables& t, const Metric& m, double limit, unsigned visited, int node) {
    if (!t.can_end[node] || (visited & t.required_ng) != t.required_ng) return false;
    return t.half_duplex[node] || m.egress_max[node] <= limit;
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
    if (!choices.stages.empty()) {
        const double* weights = choices.stages_from(t, node, start);
        const int lengths = longest_stop(t, node, start) - start;
        rest += start + 1;
        double other = infinity;  // two, because one would wait for itself
        for (int i = 0; i + 1 < lengths; i += 2) {
            best = std::min(best, weights[i] + rest[i]);
            other = std::min(other, weights[i + 1] + rest[i + 1]);
        }
        if (lengths % 2 == 1) best = std::min(best, weights[lengths - 1] + rest[lengths - 1]);
        return std::min(best, other);
    }
    if (!t.has_weight_levels()) return best_of_lane<false>(t, m, r, node, node, start, rest, best);
    for (int w = 0; w < t.weight_levels; ++w)
        best = best_of_lane<true>(t, m, r, t.lane(node, w), node, start, rest, best);
    return best;
}

// Over the links that do not change the visited set, or `best` if that is less.
double best_transfer(const Tables& t, const Metric& m, const BestChoices& choices, const Relaxation& r,
                     unsigned visited, int boundary, int vertex, double best) {
    if (visited >> t.ng_size >= t.most_stages) return best;
    for (int e = t.neighbour_start[vertex]; e < t.neighbour_start[vertex + 1]; ++e) {
        const int next = t.neighbour[e];
        if (t.ng_bit[t.node_of[next]] >= 0) continue;
        const double rest = r.to_go_arrived[state(t, visited, boundary, next)];
        if (rest >= best) continue;
        const double transfer = choices.transfers.empty()
                                    ? best_level(t, m, r, boundary, t.node_of[vertex], e)
                                    : choices.transfers_of(t, e)[boundary];
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

void lower(double* least, const double* weights, const double* rest, int count) {
    for (int i = 0; i < count; ++i) least[i] = std::min(least[i], weights[i] + rest[i]);
}

// The end of a chain, and the links to other visited sets: all boundaries of a state at once, so that the inner loop runs
// along contiguous memory.
void fill_departed(const Tables& t, const Metric& m, const BestChoices& choices, Relaxation& r,
                   unsigned visited, int vertex) {
    double* departed = r.to_go_departed.data() + state(t, visited, 0, vertex);
    std::fill_n(departed, t.layers + 1, infinity);
    if (!is_state(t, visited, vertex)) return;
    const int node = t.node_of[vertex];
    if (may_end(t, m, r.limit, visited, node)) departed[t.layers] = m.egress_sum[node];
    if (choices.transfers.empty()) return;
    for (int e = t.neighbour_start[vertex]; e < t.neighbour_start[vertex + 1]; ++e) {
        const int next = t.neighbour[e];
        const unsigned larger = with_node(t, visited, t.node_of[next]);
        if (larger == visited || is_blocked(t, visited, t.node_of[next])) continue;
        lower(departed, choices.transfers_of(t, e), r.to_go_arrived.data() + state(t, larger, 0, next),
              t.layers + 1);
    }
}

// Returns false if it must end early; checked at every boundary if `operations`, those at a boundary, are not 0.
bool fill_visited(const Tables& t, const Metric& m, const BestChoices& choices, Relaxation& r,
                  unsigned visited, std::size_t operations, const TimeLimit& time_limit) {
    for (int v = 0; v < t.vertices(); ++v) {
        fill_departed(t, m, choices, r, visited, v);
        std::fill_n(r.to_go_arrived.data() + state(t, visited, 0, v), t.layers + 1, infinity);
    }
    for (int i = t.layers - 1; i >= 0; --i) {
        if (operations > 0 && time_limit.must_end_after(operations)) return false;
        for (int v = 0; v < t.vertices(); ++v) {
            if (is_state(t, visited, v))
                r.to_go_arrived[state(t, visited, i, v)] = best_stage(t, m, choices, r, visited, i, v);
        }
        for (int v = 0; i > 0 && v < t.vertices(); ++v) {
            if (!is_state(t, visited, v)) continue;
            double& departed = r.to_go_departed[state(t, visited, i, v)];
            departed = best_transfer(t, m, choices, r, visited, i, v, departed);
        }
    }
    return true;
}

// The relaxation where every transfer leads to another visited set. States of the same number of visited nodes, or of
// stages where these are counted, do not depend on each other: threads share them, and every value is the same whatever
// their number.
class LayeredFill {
  public:
    LayeredFill(const Tables& t, const Metric& m, const BestChoices& choices, Relaxation& r)
        : t_(t), m_(m), choices_(choices), r_(r) {
        const std::size_t links = t.neighbour.size() / t.vertices();
        const std::size_t lengths = choices.rows.back() / t.nodes;
        operations_ = (links + lengths + 1) * (t.layers + 1);
    }

    // Returns false if it must end early.
    bool run(const TimeLimit& time_limit) {
        std::vector<std::vector<unsigned>> sets(t_.count_step > 0 ? t_.most_stages + 1 : t_.ng_size + 1);
        for (unsigned visited = 0; visited < t_.visited_sets; ++visited)
            sets[t_.count_step > 0 ? visited >> t_.ng_size : std::popcount(visited)].push_back(visited);
        for (std::size_t size = sets.size(); size-- > 0;) {
            if (!fill_sets(sets[size], time_limit)) return false;
        }
        return true;
    }

  private:
    bool fill_sets(const std::vector<unsigned>& sets, const TimeLimit& time_limit) {
        constexpr std::size_t operations_of_part = 50'000;
        constexpr std::size_t parts_of_batch = 40;  // between two looks at the clock
        const std::size_t rows = sets.size() * t_.vertices();
        const std::size_t rows_of_part = std::max<std::size_t>(1, operations_of_part / operations_);
        for (std::size_t first = 0; first < rows; first += rows_of_part * parts_of_batch) {
            const std::size_t end = std::min(rows, first + rows_of_part * parts_of_batch);
            if (time_limit.must_end_after((end - first) * operations_)) return false;
            const std::size_t parts = (end - first + rows_of_part - 1) / rows_of_part;
            pool::run_parts(parts, t_.threads, [&](std::size_t part) {
                const std::size_t from = first + part * rows_of_part;
                for (std::size_t row = from; row < std::min(end, from + rows_of_part); ++row)
                    fill_state(sets[row / t_.vertices()], static_cast<int>(row % t_.vertices()));
            });
        }
        return true;
    }

    void fill_state(unsigned visited, int vertex) {
        if (!is_state(t_, visited, vertex)) return;  // no state leads to it, nobody asks
        fill_departed(t_, m_, choices_, r_, visited, vertex);
        const double* departed = r_.to_go_departed.data() + state(t_, visited, 0, vertex);
        double* arrived = r_.to_go_arrived.data() + state(t_, visited, 0, vertex);
        std::fill_n(arrived, t_.layers + 1, infinity);
        const int node = t_.node_of[vertex];
        for (int length = 1; length <= choices_.longest(node); ++length)
            lower(arrived, choices_.stages_of(t_, node, length), departed + length, t_.layers + 1 - length);
    }

    const Tables& t_;
    const Metric& m_;
    const BestChoices& choices_;
    Relaxation& r_;
    std::size_t operations_;  // of a state, all boundaries together
};

// Whether every transfer leads to another visited set.
bool is_layered(const Tables& t) {
    if (t.visited_sets == 1) return false;
    if (t.count_step > 0) return true;
    return std::all_of(t.neighbour.begin(), t.neighbour.end(),
                       [&](int next) { return t.ng_bit[t.node_of[next]] >= 0; });
}

bool fill(const Tables& t, const Metric& m, Relaxation& r, const TimeLimit& time_limit) {
    const BestChoices choices = best_choices(t, m, r, is_layered(t), time_limit);
    if (is_layered(t)) return LayeredFill(t, m, choices, r).run(time_limit);
    const std::size_t operations = operations_of_boundary(t);
    const bool is_long =
        operations > 10'000;  // a check at every boundary would take some percent of a short one
    for (unsigned visited = t.visited_sets; visited-- > 0;) {
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
        : t_(t),
          m_(m),
          r_(r),
          time_limit_(time_limit),
          choices_(best_choices(t, m, r, is_layered(t), time_limit)) {
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
                                        : choices_.transfers_of(t_, e)[boundary];
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
    m.compute_max = m.start_sum = m.start_max = m.compute_sum;
    m.compressed_sum.assign((t.layers + 1) * t.levels, 0);
    m.compressed_max = m.code_sum = m.encode_max = m.compressed_sum;
    m.open_max.assign(t.layers + 1, 0);
    m.close_max.assign((t.layers + 1) * t.nodes, 0);
    m.ingress_sum.assign(t.nodes, 0);
    m.ingress_max = m.egress_sum = m.egress_max = m.ingress_sum;
    return m;
}

Relaxation relax(const Tables& t, const Metric& metric, double limit, double multiplier,
                 const TimeLimit& time_limit, Relaxation spare) {
    Relaxation r = std::move(spare);
    r.limit = limit;
    r.multiplier = multiplier;
    r.root = 0;
    const std::size_t states = state(t, t.visited_sets, 0, 0);
    r.to_go_departed.resize(states);
    r.to_go_arrived.resize(states);
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
