#include "planner/bounds.hpp"

#include <algorithm>
#include <limits>

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Weight of a stage in the sum, or infinity where the limit forbids it.
inline double stage_weight(const Tables& t, const Metric& m, double limit, int node, int start, int stop) {
    const int from = t.node_boundary(node, start);
    const int to = t.node_boundary(node, stop);
    const double busy = m.compute_max[to] - m.compute_max[from];
    if (busy + m.open_max[start] + m.close_max[t.boundary_node(stop, node)] > limit) return infinity;
    return m.compute_sum[to] - m.compute_sum[from];
}

// Weight of encoding, sending and decoding at a boundary, or infinity where the limit forbids it.
inline double transfer_weight(const Tables& t, const Metric& m, double limit, int from, int to, int index) {
    const int pair = t.pair(from, to);
    const double link = m.packed_max[index] * t.pace[pair] + m.latency_max * t.latency[pair];
    const double encode = m.encode_max[index];
    if (t.half_duplex[from] ? encode + link > limit : (encode > limit || link > limit)) return infinity;
    return m.packed_sum[index] * t.pace[pair] + m.latency_sum * t.latency[pair] + m.code_sum[index];
}

bool may_end(const Tables& t, const Metric& m, double limit, unsigned past, int node) {
    if (!t.can_end[node] || (past & t.required_tracked) != t.required_tracked) return false;
    return t.half_duplex[node] || m.egress_max[node] <= limit;
}

double best_level(const Tables& t, const Metric& m, const Relaxation& r, int boundary, int from, int to) {
    double best = infinity;
    for (int k = 0; k < t.levels; ++k) {
        const int index = t.boundary_level(boundary, k);
        best = std::min(best, transfer_weight(t, m, r.limit, from, to, index) + r.price * t.loss[index]);
    }
    return best;
}

// Transfers do not depend on the past: with many pasts the best level of every link at every boundary is worth
// keeping, by (boundary, link); with one it is not, because most are never asked for.
std::vector<double> best_levels(const Tables& t, const Metric& m, const Relaxation& r) {
    std::vector<double> best;
    if (t.pasts == 1) return best;
    best.reserve(t.layers * t.neighbour.size());
    for (int i = 0; i < t.layers; ++i) {
        for (int n = 0; n < t.nodes; ++n) {
            for (int e = t.neighbour_start[n]; e < t.neighbour_start[n + 1]; ++e)
                best.push_back(best_level(t, m, r, i, n, t.neighbour[e]));
        }
    }
    return best;
}

double best_stage(const Tables& t, const Metric& m, const Relaxation& r, unsigned past, int start, int node) {
    double best = infinity;
    const int most = t.max_stop[t.node_boundary(node, start)];
    const double* rest = r.depart.data() + state(t, past, 0, node);
    for (int stop = start + 1; stop <= most; ++stop) {
        if (rest[stop] >= best) continue;
        best = std::min(best, stage_weight(t, m, r.limit, node, start, stop) + rest[stop]);
    }
    return best;
}

double best_transfer(const Tables& t, const Metric& m, const std::vector<double>& transfers,
                     const Relaxation& r, unsigned past, int boundary, int node) {
    double best = infinity;
    const std::size_t row = boundary * t.neighbour.size();
    for (int e = t.neighbour_start[node]; e < t.neighbour_start[node + 1]; ++e) {
        const int to = t.neighbour[e];
        if (is_blocked(t, past, to)) continue;
        const double rest = r.arrive[state(t, with_node(t, past, to), boundary, to)];
        if (rest >= best) continue;
        const double transfer =
            transfers.empty() ? best_level(t, m, r, boundary, node, to) : transfers[row + e];
        best = std::min(best, transfer + rest);
    }
    return best;
}

void fill_past(const Tables& t, const Metric& m, const std::vector<double>& transfers, Relaxation& r,
               unsigned past) {
    const auto is_state = [&](int n) { return t.tracked_bit[n] < 0 || has_used(t, past, n); };
    for (int n = 0; n < t.nodes; ++n) {
        if (is_state(n) && may_end(t, m, r.limit, past, n))
            r.depart[state(t, past, t.layers, n)] = m.egress_sum[n];
    }
    for (int i = t.layers - 1; i >= 0; --i) {
        for (int n = 0; n < t.nodes; ++n) {
            if (is_state(n)) r.arrive[state(t, past, i, n)] = best_stage(t, m, r, past, i, n);
        }
        for (int n = 0; i > 0 && n < t.nodes; ++n) {
            if (is_state(n)) r.depart[state(t, past, i, n)] = best_transfer(t, m, transfers, r, past, i, n);
        }
    }
}

double start_value(const Tables& t, const Metric& m, const Relaxation& r, int node) {
    if (!t.can_start[node] || m.ingress_max[node] > r.limit) return infinity;
    return m.ingress_sum[node] + r.arrive[state(t, with_node(t, 0, node), 0, node)];
}

// One walk along a relaxation's choices. With a least-loss relaxation it makes a plan, else a relaxed one.
class Walker {
  public:
    Walker(const Tables& t, const Metric& m, const Relaxation& r, const Relaxation* least)
        : t_(t), m_(m), r_(r), least_(least), used_(t.nodes, 0) {}

    Walk run() {
        int node = -1;
        double best = infinity;
        for (int n = 0; n < t_.nodes; ++n) {
            const double value = start_value(t_, m_, r_, n);
            if (value < best && fits(0, least_arrive(with_node(t_, 0, n), 0, n))) {
                best = value;
                node = n;
            }
        }
        int boundary = 0;
        while (node >= 0) {
            past_ = with_node(t_, past_, node);
            used_[node] = 1;
            const int stop = pick_stop(boundary, node);
            if (stop < 0) return {};
            walk_.stages.push_back({node, boundary, stop, no_level});
            boundary = stop;
            if (stop == t_.layers) {
                walk_.is_complete = true;
                return walk_;
            }
            node = pick_transfer(boundary, node);
        }
        return {};
    }

  private:
    bool fits(double more, double to_come) const {
        return least_ == nullptr || walk_.loss + more + to_come <= t_.loss_limit;
    }
    double least_arrive(unsigned past, int boundary, int node) const {
        return least_ == nullptr ? 0 : least_->arrive[state(t_, past, boundary, node)];
    }

    int pick_stop(int start, int node) const {
        int choice = -1;
        double best = infinity;
        for (int stop = start + 1; stop <= t_.max_stop[t_.node_boundary(node, start)]; ++stop) {
            const std::size_t next = state(t_, past_, stop, node);
            const double value = stage_weight(t_, m_, r_.limit, node, start, stop) + r_.depart[next];
            if (value < best && fits(0, least_ == nullptr ? 0 : least_->depart[next])) {
                best = value;
                choice = stop;
            }
        }
        return choice;
    }

    int pick_transfer(int boundary, int node) {
        int choice = -1;
        int level = 0;
        double best = infinity;
        for (int e = t_.neighbour_start[node]; e < t_.neighbour_start[node + 1]; ++e) {
            const int to = t_.neighbour[e];
            if (is_blocked(t_, past_, to) || (least_ != nullptr && used_[to])) continue;
            const unsigned past = with_node(t_, past_, to);
            for (int k = 0; k < t_.levels; ++k) {
                const int index = t_.boundary_level(boundary, k);
                const double value = transfer_weight(t_, m_, r_.limit, node, to, index) +
                                     r_.price * t_.loss[index] + r_.arrive[state(t_, past, boundary, to)];
                if (value < best && fits(t_.loss[index], least_arrive(past, boundary, to))) {
                    best = value;
                    choice = to;
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
    unsigned past_ = 0;
    Walk walk_;
};

Metric without_time(const Tables& t) {
    Metric m;
    m.prefill_sum = m.latency_sum = 0;
    m.compute_sum.assign(t.nodes * (t.layers + 1), 0);
    m.compute_max = m.compute_sum;
    m.packed_sum.assign((t.layers + 1) * t.levels, 0);
    m.packed_max = m.code_sum = m.encode_max = m.packed_sum;
    m.open_max.assign(t.layers + 1, 0);
    m.close_max.assign((t.layers + 1) * t.nodes, 0);
    m.ingress_sum.assign(t.nodes, 0);
    m.ingress_max = m.egress_sum = m.egress_max = m.ingress_sum;
    return m;
}

}  // namespace

Relaxation relax(const Tables& t, const Metric& metric, double limit, double price) {
    Relaxation r;
    r.limit = limit;
    r.price = price;
    const std::size_t states = state(t, t.pasts, 0, 0);
    r.depart.assign(states, infinity);
    r.arrive.assign(states, infinity);
    const std::vector<double> transfers = best_levels(t, metric, r);
    for (unsigned past = t.pasts; past-- > t.count_step;) fill_past(t, metric, transfers, r, past);
    r.root = infinity;
    for (int n = 0; n < t.nodes; ++n) r.root = std::min(r.root, start_value(t, metric, r, n));
    return r;
}

Relaxation least_loss(const Tables& t) { return relax(t, without_time(t), infinity, 1); }

Walk follow(const Tables& t, const Metric& metric, const Relaxation& relaxation) {
    return Walker(t, metric, relaxation, nullptr).run();
}

Walk dive(const Tables& t, const Metric& metric, const Relaxation& relaxation, const Relaxation& least) {
    return Walker(t, metric, relaxation, &least).run();
}

Walk dive_for_loss(const Tables& t, const Relaxation& least) {
    return dive(t, without_time(t), least, least);
}

}  // namespace orbitsplit::planner
