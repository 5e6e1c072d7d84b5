import { pollGently } from '../src/device/poll.js';

pollGently();
