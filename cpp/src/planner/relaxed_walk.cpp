#include "planner/relaxed_walk.hpp"

#include <limits>

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

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
            if (!pick_stage(boundary, vertex)) return {};
            boundary = walk_.stages.back().stop;
            if (boundary == t_.layers) {
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

    // Appends a stage; false if there is none.
    bool pick_stage(int start, int vertex) {
        double best = infinity;
        double best_loss = 0;
        const int node = t_.node_of[vertex];
        Stage choice;
        for (int w = 0; w < t_.weight_levels; ++w) {
            const int lane = t_.lane(node, w);
            const double* losses = t_.stage_losses(w, start);
            for (int stop = start + 1; stop <= t_.max_stop[t_.lane_boundary(lane, start)]; ++stop) {
                const std::size_t next = state(t_, visited_, stop, vertex);
                const double loss = losses == nullptr ? 0 : losses[stop];
                const double value = stage_weight(t_, m_, r_.limit, lane, node, start, stop) +
                                     r_.multiplier * loss + r_.to_go_departed[next];
                if (value < best && fits(loss, least_ == nullptr ? 0 : least_->to_go_departed[next])) {
                    best = value;
                    best_loss = loss;
                    choice = {node, start, stop, no_level, t_.weight_level(w)};
                }
            }
        }
        if (best == infinity) return false;
        walk_.loss += best_loss;
        walk_.stages.push_back(choice);
        return true;
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

}  // namespace

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
