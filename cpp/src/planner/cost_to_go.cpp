#include "planner/cost_to_go.hpp"

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

// Weight of encoding, sending over a link and decoding, or infinity where the limit forbids it.
inline double transfer_weight(const Tables& t, const Metric& m, double limit, int from, int link, int index) {
    const double busy = m.packed_max[index] * t.pace[link] + m.latency_max * t.latency[link];
    const double encode = m.encode_max[index];
    if (t.half_duplex[from] ? encode + busy > limit : (encode > limit || busy > limit)) return infinity;
    return m.packed_sum[index] * t.pace[link] + m.latency_sum * t.latency[link] + m.code_sum[index];
}

bool may_end(const Tables& t, const Metric& m, double limit, unsigned past, int node) {
    if (!t.can_end[node] || (past & t.required_tracked) != t.required_tracked) return false;
    return t.half_duplex[node] || m.egress_max[node] <= limit;
}

double best_level(const Tables& t, const Metric& m, const Relaxation& r, int boundary, int from, int link) {
    double best = infinity;
    for (int k = 0; k < t.levels; ++k) {
        const int index = t.boundary_level(boundary, k);
        best = std::min(best, transfer_weight(t, m, r.limit, from, link, index) + r.price * t.loss[index]);
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
        for (int p = 0; p < t.places(); ++p) {
            for (int e = t.neighbour_start[p]; e < t.neighbour_start[p + 1]; ++e)
                best.push_back(best_level(t, m, r, i, t.node_of[p], e));
        }
    }
    return best;
}

double best_stage(const Tables& t, const Metric& m, const Relaxation& r, unsigned past, int start,
                  int place) {
    double best = infinity;
    const int node = t.node_of[place];
    const int most = t.max_stop[t.node_boundary(node, start)];
    const double* rest = r.depart.data() + state(t, past, 0, place);
    for (int stop = start + 1; stop <= most; ++stop) {
        if (rest[stop] >= best) continue;
        best = std::min(best, stage_weight(t, m, r.limit, node, start, stop) + rest[stop]);
    }
    return best;
}

double best_transfer(const Tables& t, const Metric& m, const std::vector<double>& transfers,
                     const Relaxation& r, unsigned past, int boundary, int place) {
    double best = infinity;
    const std::size_t row = boundary * t.neighbour.size();
    for (int e = t.neighbour_start[place]; e < t.neighbour_start[place + 1]; ++e) {
        const int to = t.neighbour[e];
        const int node = t.node_of[to];
        if (is_blocked(t, past, node)) continue;
        const double rest = r.arrive[state(t, with_node(t, past, node), boundary, to)];
        if (rest >= best) continue;
        const double transfer =
            transfers.empty() ? best_level(t, m, r, boundary, t.node_of[place], e) : transfers[row + e];
        best = std::min(best, transfer + rest);
    }
    return best;
}

// Whether chains with such a past can be at a place: it contains the node, and as many stages as the place remembers.
bool is_state(const Tables& t, unsigned past, int place) {
    const int node = t.node_of[place];
    if (t.tracked_bit[node] >= 0 && !has_used(t, past, node)) return false;
    if (t.count_step == 0) return true;
    const int stages = static_cast<int>(past >> t.tracked);
    const int remembered = t.remembered[place];
    return remembered < t.memory ? stages == remembered : stages >= remembered;
}

void fill_past(const Tables& t, const Metric& m, const std::vector<double>& transfers, Relaxation& r,
               unsigned past) {
    for (int p = 0; p < t.places(); ++p) {
        if (is_state(t, past, p) && may_end(t, m, r.limit, past, t.node_of[p]))
            r.depart[state(t, past, t.layers, p)] = m.egress_sum[t.node_of[p]];
    }
    for (int i = t.layers - 1; i >= 0; --i) {
        for (int p = 0; p < t.places(); ++p) {
            if (is_state(t, past, p)) r.arrive[state(t, past, i, p)] = best_stage(t, m, r, past, i, p);
        }
        for (int p = 0; i > 0 && p < t.places(); ++p) {
            if (is_state(t, past, p))
                r.depart[state(t, past, i, p)] = best_transfer(t, m, transfers, r, past, i, p);
        }
    }
}

// The weight of reaching a chain's first node, or infinity.
double start_weight(const Tables& t, const Metric& m, double limit, int node) {
    if (t.start_place[node] < 0 || !t.can_start[node] || m.ingress_max[node] > limit) return infinity;
    return m.ingress_sum[node];
}

double start_value(const Tables& t, const Metric& m, const Relaxation& r, int node) {
    const double weight = start_weight(t, m, r.limit, node);
    if (weight == infinity) return infinity;
    return weight + r.arrive[state(t, with_node(t, 0, node), 0, t.start_place[node])];
}

// A forward dynamic programme over the same stages and transfers, met with the backward one at every arrival.
class ForwardPass {
  public:
    ForwardPass(const Tables& t, const Metric& m, const Relaxation& r)
        : t_(t), m_(m), r_(r), transfers_(best_levels(t, m, r)) {
        arrive_.assign(r.arrive.size(), infinity);
        depart_ = arrive_;
    }

    std::vector<double> run() {
        for (int n = 0; n < t_.nodes; ++n) {
            const double weight = start_weight(t_, m_, r_.limit, n);
            if (weight < infinity) arrive_[state(t_, with_node(t_, 0, n), 0, t_.start_place[n])] = weight;
        }
        std::vector<double> best(t_.places(), infinity);
        for (int i = 0; i < t_.layers; ++i) {
            // All that departs at a boundary is known before, all that arrives there only after it was sent.
            for (unsigned past = 0; past < t_.pasts && i > 0; ++past) {
                for (int p = 0; p < t_.places(); ++p) send(past, i, p);
            }
            for (unsigned past = 0; past < t_.pasts; ++past) {
                for (int p = 0; p < t_.places(); ++p) {
                    const std::size_t at = state(t_, past, i, p);
                    if (arrive_[at] == infinity) continue;
                    best[p] = std::min(best[p], arrive_[at] + r_.arrive[at]);
                    compute(past, i, p);
                }
            }
        }
        return best;
    }

  private:
    void send(unsigned past, int boundary, int place) {
        const double from = depart_[state(t_, past, boundary, place)];
        if (from == infinity) return;
        for (int e = t_.neighbour_start[place]; e < t_.neighbour_start[place + 1]; ++e) {
            const int node = t_.node_of[t_.neighbour[e]];
            if (is_blocked(t_, past, node)) continue;
            double& to = arrive_[state(t_, with_node(t_, past, node), boundary, t_.neighbour[e])];
            const double transfer = transfers_.empty()
                                        ? best_level(t_, m_, r_, boundary, t_.node_of[place], e)
                                        : transfers_[boundary * t_.neighbour.size() + e];
            to = std::min(to, from + transfer);
        }
    }

    void compute(unsigned past, int start, int place) {
        const double from = arrive_[state(t_, past, start, place)];
        const int node = t_.node_of[place];
        for (int stop = start + 1; stop <= t_.max_stop[t_.node_boundary(node, start)]; ++stop) {
            double& to = depart_[state(t_, past, stop, place)];
            to = std::min(to, from + stage_weight(t_, m_, r_.limit, node, start, stop));
        }
    }

    const Tables& t_;
    const Metric& m_;
    const Relaxation& r_;
    const std::vector<double> transfers_;
    std::vector<double> arrive_;
    std::vector<double> depart_;
};

// One walk along a relaxation's choices. With a least-loss relaxation it makes a plan, else a relaxed one.
class Walker {
  public:
    Walker(const Tables& t, const Metric& m, const Relaxation& r, const Relaxation* least)
        : t_(t), m_(m), r_(r), least_(least), used_(t.nodes, 0) {}

    Walk run() {
        int place = pick_start();
        int boundary = 0;
        while (place >= 0) {
            const int node = t_.node_of[place];
            past_ = with_node(t_, past_, node);
            used_[node] = 1;
            const int stop = pick_stop(boundary, place);
            if (stop < 0) return {};
            walk_.stages.push_back({node, boundary, stop, no_level});
            boundary = stop;
            if (stop == t_.layers) {
                walk_.is_complete = true;
                return walk_;
            }
            place = pick_transfer(boundary, place);
        }
        return {};
    }

  private:
    bool fits(double more, double to_come) const {
        return least_ == nullptr || walk_.loss + more + to_come <= t_.loss_limit;
    }
    double least_arrive(unsigned past, int boundary, int place) const {
        return least_ == nullptr ? 0 : least_->arrive[state(t_, past, boundary, place)];
    }

    int pick_start() const {
        int choice = -1;
        double best = infinity;
        for (int n = 0; n < t_.nodes; ++n) {
            const double value = start_value(t_, m_, r_, n);
            if (value < best && fits(0, least_arrive(with_node(t_, 0, n), 0, t_.start_place[n]))) {
                best = value;
                choice = t_.start_place[n];
            }
        }
        return choice;
    }

    int pick_stop(int start, int place) const {
        int choice = -1;
        double best = infinity;
        const int node = t_.node_of[place];
        for (int stop = start + 1; stop <= t_.max_stop[t_.node_boundary(node, start)]; ++stop) {
            const std::size_t next = state(t_, past_, stop, place);
            const double value = stage_weight(t_, m_, r_.limit, node, start, stop) + r_.depart[next];
            if (value < best && fits(0, least_ == nullptr ? 0 : least_->depart[next])) {
                best = value;
                choice = stop;
            }
        }
        return choice;
    }

    int pick_transfer(int boundary, int place) {
        int choice = -1;
        int level = 0;
        double best = infinity;
        for (int e = t_.neighbour_start[place]; e < t_.neighbour_start[place + 1]; ++e) {
            const int to = t_.neighbour[e];
            const int node = t_.node_of[to];
            if (is_blocked(t_, past_, node) || (least_ != nullptr && used_[node])) continue;
            const unsigned past = with_node(t_, past_, node);
            for (int k = 0; k < t_.levels; ++k) {
                const int index = t_.boundary_level(boundary, k);
                const double value = transfer_weight(t_, m_, r_.limit, t_.node_of[place], e, index) +
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

std::vector<double> through(const Tables& t, const Metric& metric, const Relaxation& relaxation) {
    return ForwardPass(t, metric, relaxation).run();
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
