// Sums of each of a thread's SUMS values over the LANES neighbouring threads of its team, through workgroup memory: every
// thread gets all of them. Every thread of the workgroup must call this together.

var<workgroup> lane_values: array<f32, SUMS * THREADS>;
var<workgroup> lane_totals: array<f32, SUMS * THREADS / LANES>;

fn lane_sums(x: ptr<function, array<f32, SUMS>>, thread: u32) {
  let lane = thread % LANES;
  let team = thread / LANES;
  for (var i = 0u; i < SUMS; i++) {
    lane_values[i * THREADS + thread] = (*x)[i];
  }
  workgroupBarrier();
  for (var i = lane; i < SUMS; i += LANES) {
    var sum = 0.0;
    for (var other = 0u; other < LANES; other++) {
      sum += lane_values[i * THREADS + team * LANES + other];
    }
    lane_totals[team * SUMS + i] = sum;
  }
  workgroupBarrier();
  for (var i = 0u; i < SUMS; i++) {
    (*x)[i] = lane_totals[team * SUMS + i];
  }
}
